"""The gRPC server and its options."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio

from multigrain_server.config import GrpcConfig


def build_server(
    config: GrpcConfig, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    """A server without services."""
    size = config.max_message_mib << 20
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        # Two daemons on one port would each get a random half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", int(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ping as often without being called abusive.
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
    ]
    if config.max_connection_age_seconds:
        # Long-lived connections would otherwise never reach a replica that came later.
        options += [
            ("grpc.max_connection_age_ms", int(config.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", int(config.connection_grace_seconds * 1000)),
        ]
    return grpc.aio.server(interceptors=list(interceptors), options=options)
