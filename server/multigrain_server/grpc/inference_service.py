"""The Open Inference Protocol: messages in, the core's answers out."""

# ruff: noqa: N802 - the methods have the names of the protocol

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from multigrain import __version__
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1.inference import model_pb2, service_pb2, service_pb2_grpc
from multigrain_server.convert.inference.description import (
    config_message,
    index_message,
    metadata_message,
)
from multigrain_server.convert.inference.repository import check_unload, load_runtime
from multigrain_server.convert.inference.request import InferRequest, infer_request
from multigrain_server.convert.inference.response import (
    infer_response,
    stream_error,
    stream_response,
)
from multigrain_server.convert.inference.statistics import statistics_message
from multigrain_server.grpc.caller import deadline_ns, log_request_id
from multigrain_server.grpc.inference_models import InferenceModels
from multigrain_server.grpc.inference_stream import StreamCore, StreamReply, StreamRequest
from multigrain_server.models.loaded_model import ModelState
from multigrain_server.models.manager import ModelManager
from multigrain_server.serving.request import Answer
from multigrain_server.serving.service import ImageService
from multigrain_server.serving.stream import AnswerStream

Context = grpc.aio.ServicerContext[Any, Any]

EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
# A client's wish for a stream that ends with a status at the first error.
_STATUS_HEADER = "triton_grpc_error"


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Raises MultigrainError; the server's interceptor makes a status of it.

    Args:
        manager: the models.
        accepting: whether the daemon takes requests.
    """

    def __init__(self, manager: ModelManager, accepting: Callable[[], bool]) -> None:
        self._manager = manager
        self._accepting = accepting
        self._models = InferenceModels(manager)
        self._service = ImageService(manager)

    async def ServerLive(
        self, request: service_pb2.ServerLiveRequest, context: Context
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: service_pb2.ServerReadyRequest, context: Context
    ) -> service_pb2.ServerReadyResponse:
        # With no model it is ready for RepositoryModelLoad.
        able = self._manager.catalogue.default_state() in (None, ModelState.READY)
        return service_pb2.ServerReadyResponse(ready=self._accepting() and able)

    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: Context
    ) -> service_pb2.ModelReadyResponse:
        ready = self._models.ready(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: service_pb2.ServerMetadataRequest, context: Context
    ) -> service_pb2.ServerMetadataResponse:
        return service_pb2.ServerMetadataResponse(
            name="multigrain", version=__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(
        self, request: service_pb2.ModelMetadataRequest, context: Context
    ) -> service_pb2.ModelMetadataResponse:
        entry = self._models.view(request.name, request.version).entry
        return metadata_message(entry.manifest, self._models.versions(entry.version.name))

    async def ModelConfig(
        self, request: model_pb2.ModelConfigRequest, context: Context
    ) -> model_pb2.ModelConfigResponse:
        view = self._models.view(request.name, request.version)
        loaded = [
            version.version
            for version in self._manager.catalogue.loaded
            if version.name == view.entry.version.name
        ]
        return config_message(view, loaded, self._manager.config)

    async def ModelStatistics(
        self, request: model_pb2.ModelStatisticsRequest, context: Context
    ) -> model_pb2.ModelStatisticsResponse:
        models = self._models.loaded(request.name, request.version)
        return model_pb2.ModelStatisticsResponse(
            model_stats=[
                statistics_message(version, model.statistics) for version, model in models.items()
            ]
        )

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: Context
    ) -> service_pb2.ModelInferResponse:
        log_request_id(request.id)
        asked = self._asked(request, context)
        return self._response(await self._service.answer(asked.request), asked)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[service_pb2.ModelInferRequest], context: Context
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        strict = _wants_status(context)

        async def requests() -> AsyncIterator[StreamRequest]:
            async for message in request_iterator:
                try:
                    yield StreamRequest(message, self._asked(message, context))
                except MultigrainError as error:
                    yield StreamRequest(message, error=error)

        stream = AnswerStream(StreamCore(self._service), self._manager.config.stream_window)
        replies = stream.answers(requests())
        try:
            async for reply in replies:
                try:
                    yield stream_response(self._reply(reply))
                except MultigrainError as error:
                    if strict:
                        log_request_id(reply.message.id)
                        raise
                    yield stream_error(reply.message, error)
        finally:
            await replies.aclose()

    async def RepositoryIndex(
        self, request: model_pb2.RepositoryIndexRequest, context: Context
    ) -> model_pb2.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        return index_message(self._models.views(), ready=request.ready)

    async def RepositoryModelLoad(
        self, request: model_pb2.RepositoryModelLoadRequest, context: Context
    ) -> model_pb2.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        await self._manager.load(request.model_name, load_runtime(request.parameters))
        return model_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: model_pb2.RepositoryModelUnloadRequest, context: Context
    ) -> model_pb2.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        check_unload(request.parameters)
        await self._models.unload(request.model_name)
        return model_pb2.RepositoryModelUnloadResponse()

    def _asked(self, message: service_pb2.ModelInferRequest, context: Context) -> InferRequest:
        now = time.monotonic_ns()
        return infer_request(
            message,
            self._models.reference(message.model_name, message.model_version),
            max_images=self._manager.config.max_images_per_request,
            received_ns=now,
            deadline_ns=deadline_ns(context, now),
        )

    def _reply(self, reply: StreamReply) -> service_pb2.ModelInferResponse:
        if reply.error is not None:
            raise reply.error
        assert reply.asked is not None
        assert reply.answer is not None
        return self._response(reply.answer, reply.asked)

    def _response(self, answer: Answer, asked: InferRequest) -> service_pb2.ModelInferResponse:
        start = time.monotonic()
        response = infer_response(answer, asked)
        self._service.encoded(answer, time.monotonic() - start)
        return response


def _check_repository(name: str) -> None:
    if name:
        raise MultigrainError(
            ErrorKind.NOT_FOUND, "there is one repository, without a name: leave it out"
        )


def _wants_status(context: Context) -> bool:
    return any(
        key == _STATUS_HEADER and value in ("true", b"true")
        for key, value in context.invocation_metadata() or ()
    )
