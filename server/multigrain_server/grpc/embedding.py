"""EmbeddingService: Embed, Classify and EmbedStream."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from multigrain.engine.protocol import Dtype, EmbeddingOptions
from multigrain.errors import MultigrainError
from multigrain.v1 import common_pb2, embedding_pb2, embedding_pb2_grpc
from multigrain_server.access.client import Origin, origin
from multigrain_server.convert.errors import STATUS_OF
from multigrain_server.engines.images import ImageRequest, ImageResult, new_caller
from multigrain_server.grpc.interceptor import deadline_ns, log_request_id
from multigrain_server.models.metrics import StageTimes
from multigrain_server.serving.service import ImageResponse, ImageService
from multigrain_server.serving.stream import RequestStream

# ruff: noqa: N802 - the methods have the names of the contract


EmbedContext = grpc.aio.ServicerContext[embedding_pb2.EmbedRequest, embedding_pb2.EmbedResponse]
ClassifyContext = grpc.aio.ServicerContext[
    embedding_pb2.ClassifyRequest, embedding_pb2.ClassifyResponse
]


_DTYPES: dict[int, Dtype] = {
    embedding_pb2.DTYPE_UNSPECIFIED: "fp32",
    embedding_pb2.DTYPE_FP32: "fp32",
    embedding_pb2.DTYPE_FP16: "fp16",
    embedding_pb2.DTYPE_INT8: "int8",
}
_ENCODINGS = (
    embedding_pb2.VECTOR_ENCODING_UNSPECIFIED,
    embedding_pb2.VECTOR_ENCODING_BYTES,
    embedding_pb2.VECTOR_ENCODING_FLOATS,
)
# Tag of Vector.values: field 5, length-delimited.
_VALUES_TAG = bytes([embedding_pb2.Vector.VALUES_FIELD_NUMBER << 3 | 2])
_DTYPE_NUMBERS = {
    "fp32": embedding_pb2.DTYPE_FP32,
    "fp16": embedding_pb2.DTYPE_FP16,
    "int8": embedding_pb2.DTYPE_INT8,
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a response needs of its EmbedRequest, without keeping its images.

    Attributes:
        request_id: repeated in the response.
        floats: vectors are sent as numbers instead of bytes.
    """

    request_id: str
    floats: bool

    @classmethod
    def of(cls, message: embedding_pb2.EmbedRequest) -> _Asked:
        floats = message.vector_encoding == embedding_pb2.VECTOR_ENCODING_FLOATS
        return cls(message.request_id, floats)


class EmbeddingServicer(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Raises MultigrainError; the server's interceptor makes a status of it.

    Args:
        service: computes the images.
        stream_window: images of an EmbedStream that are in flight at a time.
    """

    def __init__(self, service: ImageService, stream_window: int) -> None:
        self._service = service
        self._window = stream_window

    async def Embed(
        self, request: embedding_pb2.EmbedRequest, context: EmbedContext
    ) -> embedding_pb2.EmbedResponse:
        log_request_id(request.request_id)
        received = time.monotonic_ns()
        images = self._request(
            request,
            origin.get(),
            received_ns=received,
            deadline_ns=deadline_ns(context, received),
        )
        return self._response(await self._service.infer(images), images, _Asked.of(request))

    async def Classify(
        self, request: embedding_pb2.ClassifyRequest, context: ClassifyContext
    ) -> embedding_pb2.ClassifyResponse:
        log_request_id(request.request_id)
        received = time.monotonic_ns()
        images = _classify_request(
            request,
            origin.get(),
            received_ns=received,
            deadline_ns=deadline_ns(context, received),
        )
        response = await self._service.infer(images)
        start = time.monotonic()
        message = _classify_response(response, request.request_id)
        self._service.encoded(response, time.monotonic() - start)
        return message

    async def EmbedStream(
        self,
        request_iterator: AsyncIterator[embedding_pb2.EmbedRequest],
        context: EmbedContext,
    ) -> AsyncIterator[embedding_pb2.EmbedResponse]:
        deadline, caller = deadline_ns(context, time.monotonic_ns()), new_caller()
        sender = origin.get()
        # The requests in the window, so that their number is bounded.
        in_flight: deque[tuple[ImageRequest, _Asked]] = deque()
        newest_id = ""

        async def requests() -> AsyncIterator[ImageRequest]:
            nonlocal newest_id
            async for message in request_iterator:
                newest_id = message.request_id
                request = self._request(
                    message,
                    sender,
                    received_ns=time.monotonic_ns(),
                    deadline_ns=deadline,
                    caller=caller,
                )
                in_flight.append((request, _Asked.of(message)))
                yield request

        replies = RequestStream(self._service, self._window).replies(requests())
        try:
            async for response in replies:
                request, asked = in_flight.popleft()
                yield self._response(response, request, asked)
        except MultigrainError:
            # Replies come in order: the oldest request failed, or the newest one was malformed.
            log_request_id(in_flight[0][1].request_id if in_flight else newest_id)
            raise
        finally:
            await replies.aclose()

    def _request(
        self, message: embedding_pb2.EmbedRequest, sender: Origin, **times: int
    ) -> ImageRequest:
        try:
            return _embed_request(message, sender, **times)
        except MultigrainError:
            self._service.pacing.count(sender.client, [], [message.ByteSize()])
            raise

    def _response(
        self, response: ImageResponse, request: ImageRequest, asked: _Asked
    ) -> embedding_pb2.EmbedResponse:
        assert request.vector is not None
        start = time.monotonic()
        message = _embed_response(response, request.vector, asked)
        self._service.encoded(response, time.monotonic() - start)
        return message


def _embed_request(
    message: embedding_pb2.EmbedRequest,
    sender: Origin,
    *,
    received_ns: int,
    deadline_ns: int,
    caller: int = 0,
) -> ImageRequest:
    """Raises MultigrainError INVALID_FIELD for an unknown dtype or encoding."""
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise MultigrainError.field(
            "dtype", f"{message.dtype} is unknown: use DTYPE_FP32, DTYPE_FP16 or DTYPE_INT8"
        )
    if message.vector_encoding not in _ENCODINGS:
        raise MultigrainError.field(
            "vector_encoding",
            f"{message.vector_encoding} is unknown: use VECTOR_ENCODING_BYTES or "
            "VECTOR_ENCODING_FLOATS",
        )
    if message.vector_encoding == embedding_pb2.VECTOR_ENCODING_FLOATS and dtype != "fp32":
        raise MultigrainError.field(
            "vector_encoding",
            "VECTOR_ENCODING_FLOATS holds float32: use it with DTYPE_FP32, "
            "or VECTOR_ENCODING_BYTES",
        )
    normalize = message.normalize if message.HasField("normalize") else True
    return ImageRequest(
        model=message.model,
        # Read once: each access of a repeated field copies the bytes.
        images=list(message.images),
        resolution=message.resolution,
        vector=EmbeddingOptions(normalize=normalize, dtype=dtype, whiten=message.whiten),
        client=sender.client,
        connection=sender.connection,
        caller=caller,
        received_ns=received_ns,
        deadline_ns=deadline_ns,
    )


def _embed_response(
    response: ImageResponse, options: EmbeddingOptions, asked: _Asked
) -> embedding_pb2.EmbedResponse:
    """``options`` are those of the request."""
    dtype, size = _DTYPE_NUMBERS[options.dtype], response.embedding_size
    message = embedding_pb2.EmbedResponse(model=response.model, request_id=asked.request_id)
    _set_timings(message.timings, response.times)
    for result in response.results:
        added = message.results.add()
        if result.reply.error is not None:
            added.status.CopyFrom(_status(result))
            continue
        added.status.SetInParent()
        vector = added.embedding
        vector.size = size
        vector.dtype = dtype
        if asked.floats:
            # A packed field is the little-endian numbers, so their bytes are parsed as they are:
            # no Python object for each.
            vector.MergeFromString(_VALUES_TAG + _varint(len(result.vector)) + result.vector)
        else:
            vector.data = result.vector
        if result.reply.scale:
            vector.scale = result.reply.scale
    return message


def _varint(number: int) -> bytes:
    """The number as protobuf encodes lengths: 7 bits a byte, the low ones first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _classify_request(
    message: embedding_pb2.ClassifyRequest, sender: Origin, *, received_ns: int, deadline_ns: int
) -> ImageRequest:
    return ImageRequest(
        model=message.model,
        images=list(message.images),
        resolution=message.resolution,
        top_k=message.top_k,
        client=sender.client,
        connection=sender.connection,
        received_ns=received_ns,
        deadline_ns=deadline_ns,
    )


def _classify_response(response: ImageResponse, request_id: str) -> embedding_pb2.ClassifyResponse:
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
    message = embedding_pb2.ClassifyResponse(
        model=response.model, results=results, request_id=request_id
    )
    _set_timings(message.timings, response.times)
    return message


def _status(result: ImageResult) -> embedding_pb2.ItemStatus:
    error = result.error
    if error is None:
        return embedding_pb2.ItemStatus()
    return embedding_pb2.ItemStatus(
        code=STATUS_OF[error.kind].value[0],
        kind=common_pb2.ErrorKind.Value(f"ERROR_KIND_{error.kind.name}"),
        message=error.message,
    )


def _set_timings(message: embedding_pb2.Timings, times: StageTimes) -> None:
    """In place: building messages to copy them takes several times as long."""
    message.decode_ns = times.decode
    message.queue_ns = times.queue
    message.compute_ns = times.compute
    message.total_ns = times.total
