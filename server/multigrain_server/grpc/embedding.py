"""EmbeddingService: Embed, Classify and EmbedStream."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator

import grpc

from multigrain.errors import MultigrainError
from multigrain.v1 import embedding_pb2, embedding_pb2_grpc
from multigrain_server.convert import embedding as convert
from multigrain_server.engines.images import ImageRequest, new_caller
from multigrain_server.grpc.interceptor import deadline_ns, log_request_id
from multigrain_server.serving.service import ImageResponse, ImageService
from multigrain_server.serving.stream import RequestStream

# ruff: noqa: N802 - the methods have the names of the contract


EmbedContext = grpc.aio.ServicerContext[embedding_pb2.EmbedRequest, embedding_pb2.EmbedResponse]
ClassifyContext = grpc.aio.ServicerContext[
    embedding_pb2.ClassifyRequest, embedding_pb2.ClassifyResponse
]


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
        images = convert.embed_request(
            request, received_ns=received, deadline_ns=deadline_ns(context, received)
        )
        return self._response(await self._service.infer(images), images, request.request_id)

    async def Classify(
        self, request: embedding_pb2.ClassifyRequest, context: ClassifyContext
    ) -> embedding_pb2.ClassifyResponse:
        log_request_id(request.request_id)
        received = time.monotonic_ns()
        images = convert.classify_request(
            request, received_ns=received, deadline_ns=deadline_ns(context, received)
        )
        response = await self._service.infer(images)
        start = time.monotonic()
        message = convert.classify_response(response, request.request_id)
        self._service.encoded(response, time.monotonic() - start)
        return message

    async def EmbedStream(
        self,
        request_iterator: AsyncIterator[embedding_pb2.EmbedRequest],
        context: EmbedContext,
    ) -> AsyncIterator[embedding_pb2.EmbedResponse]:
        deadline, caller = deadline_ns(context, time.monotonic_ns()), new_caller()
        # The requests in the window, so that their number is bounded.
        in_flight: deque[tuple[ImageRequest, str]] = deque()
        newest_id = ""

        async def requests() -> AsyncIterator[ImageRequest]:
            nonlocal newest_id
            async for message in request_iterator:
                newest_id = message.request_id
                request = convert.embed_request(
                    message,
                    received_ns=time.monotonic_ns(),
                    deadline_ns=deadline,
                    caller=caller,
                )
                in_flight.append((request, message.request_id))
                yield request

        replies = RequestStream(self._service, self._window).replies(requests())
        try:
            async for response in replies:
                request, request_id = in_flight.popleft()
                yield self._response(response, request, request_id)
        except MultigrainError:
            # Replies come in order: the oldest request failed, or the newest one was malformed.
            log_request_id(in_flight[0][1] if in_flight else newest_id)
            raise
        finally:
            await replies.aclose()

    def _response(
        self, response: ImageResponse, request: ImageRequest, request_id: str
    ) -> embedding_pb2.EmbedResponse:
        assert request.vector is not None
        start = time.monotonic()
        message = convert.embed_response(response, request.vector, request_id)
        self._service.encoded(response, time.monotonic() - start)
        return message
