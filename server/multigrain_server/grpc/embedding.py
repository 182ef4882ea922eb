"""Embed, Classify and EmbedStream: messages in, the core's answers out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator

import grpc

from multigrain.errors import MultigrainError
from multigrain.v1 import embedding_pb2, embedding_pb2_grpc
from multigrain_server.convert import embedding as convert
from multigrain_server.grpc.interceptor import deadline_ns, log_request_id
from multigrain_server.models.manager import ModelManager
from multigrain_server.serving.service import ImageService
from multigrain_server.serving.stream import AnswerStream
from multigrain_server.serving.types import Answer, ImageRequest, new_caller

# ruff: noqa: N802 - the methods have the names of the contract


EmbedContext = grpc.aio.ServicerContext[embedding_pb2.EmbedRequest, embedding_pb2.EmbedResponse]
ClassifyContext = grpc.aio.ServicerContext[
    embedding_pb2.ClassifyRequest, embedding_pb2.ClassifyResponse
]


class EmbeddingServicer(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Raises MultigrainError; the server's interceptor makes a status of it."""

    def __init__(self, manager: ModelManager) -> None:
        self._window = manager.config.stream_window
        self._service = ImageService(manager)

    async def Embed(
        self, request: embedding_pb2.EmbedRequest, context: EmbedContext
    ) -> embedding_pb2.EmbedResponse:
        log_request_id(request.request_id)
        received = time.monotonic_ns()
        asked = convert.embed_request(
            request, received_ns=received, deadline_ns=deadline_ns(context, received)
        )
        return self._response(await self._service.answer(asked), asked, request.request_id)

    async def Classify(
        self, request: embedding_pb2.ClassifyRequest, context: ClassifyContext
    ) -> embedding_pb2.ClassifyResponse:
        log_request_id(request.request_id)
        received = time.monotonic_ns()
        asked = convert.classify_request(
            request, received_ns=received, deadline_ns=deadline_ns(context, received)
        )
        answer = await self._service.answer(asked)
        start = time.monotonic()
        response = convert.classify_response(answer, request.request_id)
        self._service.encoded(answer, time.monotonic() - start)
        return response

    async def EmbedStream(
        self,
        request_iterator: AsyncIterator[embedding_pb2.EmbedRequest],
        context: EmbedContext,
    ) -> AsyncIterator[embedding_pb2.EmbedResponse]:
        deadline, caller = deadline_ns(context, time.monotonic_ns()), new_caller()
        # Of the requests in the window: bounded as they are.
        asked: deque[tuple[ImageRequest, str]] = deque()
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
                asked.append((request, message.request_id))
                yield request

        stream = AnswerStream(self._service, self._window)
        answers = stream.answers(requests())
        try:
            async for answer in answers:
                request, request_id = asked.popleft()
                yield self._response(answer, request, request_id)
        except MultigrainError:
            # Answers come in order: the oldest request failed, or the newest was no request.
            log_request_id(asked[0][1] if asked else newest_id)
            raise
        finally:
            await answers.aclose()

    def _response(
        self, answer: Answer, asked: ImageRequest, request_id: str
    ) -> embedding_pb2.EmbedResponse:
        assert asked.vector is not None
        start = time.monotonic()
        response = convert.embed_response(answer, asked.vector, request_id)
        self._service.encoded(answer, time.monotonic() - start)
        return response
