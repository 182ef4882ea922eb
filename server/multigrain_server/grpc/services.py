"""The services of the contract, by the full names that health checks and reflection know."""

from __future__ import annotations

from typing import Any

from multigrain.v1 import (
    embedding_pb2,
    evaluation_pb2,
    export_pb2,
    job_pb2,
    model_pb2,
    training_pb2,
)
from multigrain.v1.inference import service_pb2


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
