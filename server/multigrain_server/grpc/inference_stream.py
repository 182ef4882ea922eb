"""ModelStreamInfer's requests, each of which may fail by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from multigrain.errors import MultigrainError
from multigrain.v1.inference import service_pb2
from multigrain_server.convert.inference.request import InferRequest
from multigrain_server.serving.request import Answer, new_caller
from multigrain_server.serving.service import ImageService


@dataclass(frozen=True)
class StreamRequest:
    """A message, and what it asks or what is wrong with it."""

    message: service_pb2.ModelInferRequest
    asked: InferRequest | None = None
    error: MultigrainError | None = None

    @property
    def images(self) -> Sequence[bytes]:
        return self.asked.request.images if self.asked is not None else ()


@dataclass(frozen=True)
class StreamReply:
    """The same with its answer, or with what went wrong."""

    message: service_pb2.ModelInferRequest
    asked: InferRequest | None = None
    answer: Answer | None = None
    error: MultigrainError | None = None


class StreamCore:
    """The serving core for a stream that goes on after a failure."""

    def __init__(self, service: ImageService) -> None:
        self._service = service
        self._caller = new_caller()

    async def answer(self, request: StreamRequest, /) -> StreamReply:
        message = request.message
        if request.asked is None:
            return StreamReply(message, error=request.error)
        try:
            answer = await self._service.answer(replace(request.asked.request, caller=self._caller))
        except MultigrainError as error:
            return StreamReply(message, error=error)
        return StreamReply(message, request.asked, answer)
