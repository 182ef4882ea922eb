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
from multigrain.v1.index_pb2_grpc import IndexServiceStub, add_IndexServiceServicer_to_server
from multigrain.v1.inference.service_pb2_grpc import (
    GRPCInferenceServiceStub,
    add_GRPCInferenceServiceServicer_to_server,
)
from multigrain.v1.model_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from multigrain_server.config import GrpcConfig
from multigrain_server.engines.config import ServingConfig
from multigrain_server.grpc.drain import InFlightCalls
from multigrain_server.grpc.embedding import EmbeddingServicer
from multigrain_server.grpc.indexes import IndexServicer
from multigrain_server.grpc.inference import InferenceServicer, UnofferedCalls
from multigrain_server.grpc.interceptor import CallInterceptor
from multigrain_server.grpc.models import ModelServicer
from multigrain_server.grpc.server import build_server
from multigrain_server.indexes.process import IndexProcess
from multigrain_server.indexes.service import IndexService
from multigrain_server.metrics.requests import RequestMetrics
from multigrain_server.tracing.call import Tracing
from tests.server.serving.harness import Harness, harness


class Serving:
    """Stubs of a running server, and what is behind it."""

    def __init__(
        self,
        root: Path,
        h: Harness,
        address: str,
        channel: grpc.aio.Channel,
        index_process: IndexProcess,
    ) -> None:
        self.address = address
        self.channel = channel
        self.harness = h
        self.manager = h.manager
        self.service = h.service
        self.embedding = EmbeddingServiceStub(channel)
        self.models = ModelServiceStub(channel)
        self.inference = GRPCInferenceServiceStub(channel)
        self.indexes = IndexServiceStub(channel)
        self.index_process = index_process
        self.root = root
        #: What the daemon says of itself.
        self.accepting = True


@asynccontextmanager
async def serving(
    root: Path,
    config: ServingConfig | None = None,
    grpc_config: GrpcConfig | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[Serving]:
    async with harness(root, config) as h:
        metrics, access = RequestMetrics(h.registry), Access(AccessConfig())
        interceptor = CallInterceptor(InFlightCalls(), metrics, access, tracing)
        server = build_server(grpc_config or GrpcConfig(), [interceptor])
        embedding = EmbeddingServicer(h.service, h.config.stream_window)
        add_EmbeddingServiceServicer_to_server(embedding, server)
        add_ModelServiceServicer_to_server(ModelServicer(h.manager), server)
        inference = InferenceServicer(h.manager, h.service, h.config, lambda: served.accepting)
        add_GRPCInferenceServiceServicer_to_server(inference, server)
        index_process = IndexProcess(root / "indexes")
        indexes = IndexService(
            index_process, h.manager.catalog, h.service, h.config.max_images_per_request
        )
        add_IndexServiceServicer_to_server(IndexServicer(indexes), server)
        server.add_generic_rpc_handlers((UnofferedCalls(),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        try:
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                served = Serving(root, h, address, channel, index_process)
                yield served
        finally:
            await server.stop(grace=0)
            await index_process.close()
