"""The services that callers reach by gRPC and by HTTP."""

from __future__ import annotations

from dataclasses import dataclass

import grpc.aio

from multigrain.v1.embedding_pb2_grpc import add_EmbeddingServiceServicer_to_server
from multigrain.v1.index_pb2_grpc import add_IndexServiceServicer_to_server
from multigrain.v1.inference.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from multigrain.v1.job_pb2_grpc import add_JobServiceServicer_to_server
from multigrain.v1.model_pb2_grpc import add_ModelServiceServicer_to_server
from multigrain_server.grpc.embedding import EmbeddingServicer
from multigrain_server.grpc.indexes import IndexServicer
from multigrain_server.grpc.inference import InferenceServicer
from multigrain_server.grpc.jobs import JobServicer
from multigrain_server.grpc.models import ModelServicer


@dataclass(frozen=True)
class Services:
    """Those that HTTP offers too."""

    embedding: EmbeddingServicer
    inference: InferenceServicer
    jobs: JobServicer
    models: ModelServicer
    indexes: IndexServicer

    def add_to(self, server: grpc.aio.Server) -> None:
        """Offers them by gRPC."""
        add_EmbeddingServiceServicer_to_server(self.embedding, server)
        add_GRPCInferenceServiceServicer_to_server(self.inference, server)
        add_JobServiceServicer_to_server(self.jobs, server)
        add_ModelServiceServicer_to_server(self.models, server)
        add_IndexServiceServicer_to_server(self.indexes, server)
