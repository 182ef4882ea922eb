"""Embed and Classify: messages to and from the types of serving."""

from __future__ import annotations

from multigrain.engine.protocol import Dtype, EmbeddingOptions
from multigrain.errors import MultigrainError
from multigrain.v1 import common_pb2, embedding_pb2
from multigrain_server.convert.errors import STATUS_OF
from multigrain_server.engines.images import ImageRequest, ImageResult
from multigrain_server.models.metrics import StageTimes
from multigrain_server.serving.service import ImageResponse

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
    response: ImageResponse, options: EmbeddingOptions, request_id: str
) -> embedding_pb2.EmbedResponse:
    """``options`` are those of the request."""
    dtype = _DTYPE_NUMBERS[options.dtype]
    results = []
    for result in response.results:
        message = embedding_pb2.EmbedResult(status=_status(result))
        if result.reply.error is None:
            message.embedding.size = response.embedding_size
            message.embedding.dtype = dtype
            message.embedding.data = result.vector
            message.embedding.scale = result.reply.scale
        results.append(message)
    return embedding_pb2.EmbedResponse(
        model=response.model,
        results=results,
        timings=_timings(response.times),
        request_id=request_id,
    )


def classify_request(
    message: embedding_pb2.ClassifyRequest, *, received_ns: int, deadline_ns: int
) -> ImageRequest:
    return ImageRequest(
        model=message.model,
        images=list(message.images),
        resolution=message.resolution,
        top_k=message.top_k,
        received_ns=received_ns,
        deadline_ns=deadline_ns,
    )


def classify_response(response: ImageResponse, request_id: str) -> embedding_pb2.ClassifyResponse:
    results = [
        embedding_pb2.ClassifyResult(
            status=_status(result),
            classes=[
                embedding_pb2.ClassScore(class_id=class_id, label=label, probability=probability)
                for class_id, label, probability in result.classes(response.labels)
            ],
        )
        for result in response.results
    ]
    return embedding_pb2.ClassifyResponse(
        model=response.model,
        results=results,
        timings=_timings(response.times),
        request_id=request_id,
    )


def _status(result: ImageResult) -> embedding_pb2.ItemStatus:
    error = result.error
    if error is None:
        return embedding_pb2.ItemStatus()
    return embedding_pb2.ItemStatus(
        code=STATUS_OF[error.kind].value[0],
        kind=common_pb2.ErrorKind.Value(f"ERROR_KIND_{error.kind.name}"),
        message=error.message,
    )


def _timings(times: StageTimes) -> embedding_pb2.Timings:
    return embedding_pb2.Timings(
        decode_ns=times.decode,
        queue_ns=times.queue,
        compute_ns=times.compute,
        total_ns=times.total,
    )
