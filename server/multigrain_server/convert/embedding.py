"""Embed and Classify messages to and from the serving core's types."""

from __future__ import annotations

from multigrain.engine.protocol import Dtype, EmbeddingOptions
from multigrain.errors import MultigrainError
from multigrain.v1 import common_pb2, embedding_pb2
from multigrain_server.convert.errors import STATUS_OF
from multigrain_server.serving.types import Answer, ImageRequest, ItemAnswer, StageTimes

_DTYPES: dict[int, Dtype] = {
    embedding_pb2.DTYPE_UNSPECIFIED: "fp32",
    embedding_pb2.DTYPE_FP32: "fp32",
    embedding_pb2.DTYPE_FP16: "fp16",
    embedding_pb2.DTYPE_INT8: "int8",
}
_DTYPE_NUMBERS = {
    "fp32": embedding_pb2.DTYPE_FP32,
    "fp16": embedding_pb2.DTYPE_FP16,
    "int8": embedding_pb2.DTYPE_INT8,
}


def embed_request(
    message: embedding_pb2.EmbedRequest, *, received_ns: int, deadline_ns: int, caller: int = 0
) -> ImageRequest:
    """Raises MultigrainError INVALID_FIELD for an unknown dtype."""
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise MultigrainError.field(
            "dtype", f"{message.dtype} is unknown: use DTYPE_FP32, DTYPE_FP16 or DTYPE_INT8"
        )
    normalize = message.normalize if message.HasField("normalize") else True
    return ImageRequest(
        model=message.model,
        # Once: each access of a repeated field makes a copy of the bytes.
        images=list(message.images),
        resolution=message.resolution,
        vector=EmbeddingOptions(normalize=normalize, dtype=dtype, whiten=message.whiten),
        caller=caller,
        received_ns=received_ns,
        deadline_ns=deadline_ns,
    )


def embed_response(
    answer: Answer, wants: EmbeddingOptions, request_id: str
) -> embedding_pb2.EmbedResponse:
    dtype = _DTYPE_NUMBERS[wants.dtype]
    results = []
    for item in answer.items:
        if item.error is not None:
            results.append(embedding_pb2.EmbedResult(status=_status(item)))
            continue
        vector = embedding_pb2.Vector(
            size=answer.embedding_size, dtype=dtype, data=item.vector, scale=item.scale
        )
        results.append(embedding_pb2.EmbedResult(status=_status(item), embedding=vector))
    return embedding_pb2.EmbedResponse(
        model=answer.model,
        results=results,
        timings=_timings(answer.times),
        request_id=request_id,
    )


def classify_request(
    message: embedding_pb2.ClassifyRequest, *, received_ns: int, deadline_ns: int
) -> ImageRequest:
    return ImageRequest(
        model=message.model,
        images=list(message.images),
        resolution=message.resolution,
        classes=True,
        top_k=message.top_k,
        received_ns=received_ns,
        deadline_ns=deadline_ns,
    )


def classify_response(answer: Answer, request_id: str) -> embedding_pb2.ClassifyResponse:
    results = [
        embedding_pb2.ClassifyResult(
            status=_status(item),
            classes=[
                embedding_pb2.ClassScore(
                    class_id=score.class_id, label=score.label, probability=score.probability
                )
                for score in item.classes
            ],
        )
        for item in answer.items
    ]
    return embedding_pb2.ClassifyResponse(
        model=answer.model,
        results=results,
        timings=_timings(answer.times),
        request_id=request_id,
    )


def _status(item: ItemAnswer) -> embedding_pb2.ItemStatus:
    if item.error is None:
        return embedding_pb2.ItemStatus()
    return embedding_pb2.ItemStatus(
        code=STATUS_OF[item.error.kind].value[0],
        kind=common_pb2.ErrorKind.Value(f"ERROR_KIND_{item.error.kind.name}"),
        message=item.error.message,
    )


def _timings(times: StageTimes) -> embedding_pb2.Timings:
    return embedding_pb2.Timings(
        decode_ns=times.decode,
        queue_ns=times.queue,
        compute_ns=times.compute,
        total_ns=times.total,
    )
