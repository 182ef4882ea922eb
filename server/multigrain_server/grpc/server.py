"""The services of the contract, by the full names that health checks and reflection know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from multigrain.v1 import (
    embedding_pb2,
    evaluation_pb2,
    export_pb2,
    job_pb2,
    model_pb2,
    training_pb2,
)
from multigrain.v1.inference import service_pb2
from multigrain_server.config import GrpcConfig


def names(*files: Any) -> tuple[str, ...]:
    """Of the services in generated modules."""
    return tuple(
        service.full_name for file in files for service in file.DESCRIPTOR.services_by_name.values()
    )


#: Ready as soon as the daemon is.
ALWAYS_READY = names(training_pb2, evaluation_pb2, export_pb2, job_pb2, model_pb2)
(EMBEDDING,) = names(embedding_pb2)
#: The same models in another protocol.
(INFERENCE,) = names(service_pb2)
EVERY = (*ALWAYS_READY, EMBEDDING, INFERENCE)


# MERGED: Reflection: grpcurl and friends work without .proto files.


_CALL = "ServerReflectionInfo"


def enable_reflection(server: grpc.aio.Server) -> None:
    """Adds the service under both of its names: older clients know only v1alpha, newer ones ask
    for v1 first, or only for it."""
    known = (*EVERY, *names(health_pb2), reflection.SERVICE_NAME, _v1_name())
    reflection.enable_server_reflection(known, server)
    server.add_generic_rpc_handlers((_v1_handler(known),))


def _v1_name() -> str:
    """Full name of the service, which gRPC's package does not have.

    It is v1alpha's but for the package, and is made known from there.
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
    return f"{new.package}.{new.service[0].name}"


def _v1_handler(known: Iterable[str]) -> grpc.GenericRpcHandler:
    # Of v1alpha's messages: they are the same bytes.
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(known).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(_v1_name(), {_CALL: handler})


# MERGED: The gRPC server and its options.


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
