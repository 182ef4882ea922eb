"""Reflection: grpcurl and friends work without .proto files."""

from __future__ import annotations

from collections.abc import Iterable

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from multigrain_server.grpc.services import EVERY, names

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
