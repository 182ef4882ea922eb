"""A gRPC server with the serving services alone, on a free loopback port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from multigrain.v1.embedding_pb2_grpc import (
    EmbeddingServiceStub,
    add_EmbeddingServiceServicer_to_server,
)
from multigrain.v1.model_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server
from multigrain_server.config import GrpcConfig
from multigrain_server.grpc.calls import Calls
from multigrain_server.grpc.embedding_service import EmbeddingServicer
from multigrain_server.grpc.interceptor import CallInterceptor
from multigrain_server.grpc.model_service import ModelServicer
from multigrain_server.grpc.server import build_server
from multigrain_server.metrics.requests import RequestMetrics
from multigrain_server.serving.config import ServingConfig
from tests.server.serving.house import House, house


class Serving:
    """Stubs of a running server, and what is behind it."""

    def __init__(self, h: House, channel: grpc.aio.Channel) -> None:
        self.house = h
        self.manager = h.manager
        self.embedding = EmbeddingServiceStub(channel)
        self.models = ModelServiceStub(channel)


@asynccontextmanager
async def serving(root: Path, config: ServingConfig | None = None) -> AsyncIterator[Serving]:
    async with house(root, config) as h:
        interceptor = CallInterceptor(Calls(), RequestMetrics(h.registry))
        server = build_server(GrpcConfig(), [interceptor])
        add_EmbeddingServiceServicer_to_server(EmbeddingServicer(h.manager), server)
        add_ModelServiceServicer_to_server(ModelServicer(h.manager), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                yield Serving(h, channel)
        finally:
            await server.stop(grace=0)
