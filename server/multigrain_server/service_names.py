"""Full names of the gRPC services, as in the protos, and of methods that other code singles out."""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from multigrain.v1 import (
    embedding_pb2,
    evaluation_pb2,
    export_pb2,
    index_pb2,
    job_pb2,
    model_pb2,
    training_pb2,
)
from multigrain.v1.inference import service_pb2


def _name(file: Any) -> str:
    """The only service of a generated module."""
    (service,) = file.DESCRIPTOR.services_by_name.values()
    return str(service.full_name)


TRAINING = _name(training_pb2)
EVALUATION = _name(evaluation_pb2)
EXPORT = _name(export_pb2)
JOB = _name(job_pb2)
MODEL = _name(model_pb2)
EMBEDDING = _name(embedding_pb2)
INDEX = _name(index_pb2)
#: The Open Inference Protocol.
INFERENCE = _name(service_pb2)
HEALTH = _name(health_pb2)
REFLECTION_V1ALPHA = _name(reflection_pb2)
REFLECTION_V1 = REFLECTION_V1ALPHA.replace("v1alpha", "v1")

#: Ready as soon as the daemon is.
ALWAYS_READY = (TRAINING, EVALUATION, EXPORT, JOB, MODEL, INDEX)
ALL = (*ALWAYS_READY, EMBEDDING, INFERENCE)

EMBED = f"/{EMBEDDING}/Embed"
CLASSIFY = f"/{EMBEDDING}/Classify"
EMBED_STREAM = f"/{EMBEDDING}/EmbedStream"
ADD_ITEMS = f"/{INDEX}/AddItems"
ADD_ITEMS_STREAM = f"/{INDEX}/AddItemsStream"
SEARCH = f"/{INDEX}/Search"
MODEL_INFER = f"/{INFERENCE}/ModelInfer"
MODEL_STREAM_INFER = f"/{INFERENCE}/ModelStreamInfer"
STREAM_EVENTS = f"/{JOB}/StreamEvents"
IMPORT_MODEL = f"/{MODEL}/ImportModel"
