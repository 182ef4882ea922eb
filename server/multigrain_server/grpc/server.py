"""The gRPC server with its options, and server reflection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from multigrain_server import service_names
from multigrain_server.config import GrpcConfig
from multigrain_server.grpc.connections import max_connections

# Bounds the speed of a client that is far away to so much per round trip: 10 MB/s from another
# continent.
_UNREAD_BYTES = 1 << 20
_HANDSHAKE_MS = 5000
# The default; and what gRPC accepts before a client has acknowledged the settings.
_METADATA_BYTES = 16 << 10
_UNACKNOWLEDGED_METADATA_BYTES = 16 << 20


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
        # Clients may ping as often without being disconnected.
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        # What a client may send of a message that is not read yet. gRPC would let it grow to some
        # MiB per stream with the speed of the connection.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
        # For TLS, and for the first bytes of HTTP/2.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", _HANDSHAKE_MS),
        # Streams whose headers are too large are ended at once, and not kept for a second.
        ("grpc.http.tarpit", 0),
        # gRPC would refuse calls at random above 8 KiB; before a client has acknowledged the
        # settings, with an error text that names every entry.
        ("grpc.max_metadata_size", _UNACKNOWLEDGED_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", max_connections(config)),
    ]
    if config.max_connection_age_seconds:
        # Clients with long-lived connections would never find a replica that was added later.
        options += [
            ("grpc.max_connection_age_ms", int(config.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", int(config.connection_grace_seconds * 1000)),
        ]
    return grpc.aio.server(interceptors=list(interceptors), options=options)


def enable_reflection(server: grpc.aio.Server) -> None:
    """Adds server reflection, so that grpcurl works without .proto files.

    Under both of its names: older clients know only v1alpha, newer ones try v1 first or only v1.
    """
    _define_v1()
    names = (
        *service_names.ALL,
        service_names.HEALTH,
        service_names.REFLECTION_V1ALPHA,
        service_names.REFLECTION_V1,
    )
    reflection.enable_server_reflection(names, server)
    server.add_generic_rpc_handlers((_v1_handler(names),))


def _define_v1() -> None:
    """Adds the v1 service to the descriptor pool: grpcio-reflection has v1alpha only.

    They differ in nothing but the package.
    """
    old = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(old)
    text = text_format.MessageToString(old).replace("v1alpha", "v1")
    new = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(new.name)
    except KeyError:
        pool.AddSerializedFile(new.SerializeToString())


def _v1_handler(names: Iterable[str]) -> grpc.GenericRpcHandler:
    # With the messages of v1alpha, whose encoding is the same.
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        service_names.REFLECTION_V1, {"ServerReflectionInfo": handler}
    )
