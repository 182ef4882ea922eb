"""The Open Inference Protocol over gRPC."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from multigrain import __version__
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1.inference import model_pb2, service_pb2, service_pb2_grpc
from multigrain_server.convert.inference_request import InferRequest, infer_request
from multigrain_server.convert.inference_response import (
    check_unload,
    config_message,
    index_message,
    infer_response,
    load_runtime,
    metadata_message,
    statistics_message,
    stream_error,
    stream_response,
)
from multigrain_server.grpc.interceptor import deadline_ns, log_request_id
from multigrain_server.models.catalog import ModelView
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.manager import ModelManager
from multigrain_server.models.reference import ModelReference, ModelVersion
from multigrain_server.serving.service import ImageService
from multigrain_server.serving.stream import AnswerStream
from multigrain_server.serving.types import Answer, new_caller

_NOT_LOADED = (ErrorKind.NOT_FOUND, ErrorKind.WRONG_STATE, ErrorKind.UNAVAILABLE)


class InferenceModels:
    """Finds models by the protocol's names."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def reference(self, name: str, version: str) -> str:
        """ "name", "name@version", or "" for the default model.

        Raises:
            MultigrainError: INVALID_FIELD; NOT_FOUND for an alias of another version.
        """
        if not version:
            return name
        if not name:
            raise MultigrainError.field("model_version", "needs a model_name")
        known = ModelReference.parse(name, "model_name")
        asked = ModelReference.parse(f"{known.name}@{version}", "model_version")
        if known.version not in (None, asked.version):
            raise MultigrainError.field("model_version", f"is {version}, but the name says {known}")
        if self._manager.catalogue.is_alias(known.name):
            target = self._manager.catalogue.find(known.name).version
            if target.version != asked.version:
                raise MultigrainError(
                    ErrorKind.NOT_FOUND, f"{known.name} is an alias of {target}, not of {asked}"
                )
            return str(target)
        return str(asked)

    def ready(self, name: str, version: str) -> bool:
        """Whether it answers; False as well for one that does not exist."""
        try:
            return self._manager.route(self.reference(name, version)).state is ModelState.READY
        except MultigrainError as error:
            if error.kind in _NOT_LOADED:
                return False
            raise

    def view(self, name: str, version: str) -> ModelView:
        """Of a name, the version that answers; of one that is not loaded, the newest on disk.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND.
        """
        text = self.reference(name, version)
        catalogue = self._manager.catalogue
        try:
            return catalogue.view(self._manager.route(text).entry)
        except MultigrainError as error:
            if not text or error.kind not in _NOT_LOADED:
                raise
            return catalogue.view(catalogue.find(text))

    def views(self) -> list[ModelView]:
        """Every version on disk."""
        return self._manager.catalogue.views()

    def versions(self, name: str) -> list[int]:
        """Of a model, on disk."""
        return [
            view.entry.version.version for view in self.views() if view.entry.version.name == name
        ]

    def loaded(self, name: str, version: str) -> dict[ModelVersion, LoadedModel]:
        """All that are loaded; or those of a name; or the one of a version or an alias.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE if none of these is loaded.
        """
        text = self.reference(name, version)
        loaded = self._manager.catalogue.loaded
        if not text:
            return dict(loaded)
        found = {key: model for key, model in loaded.items() if key.name == text}
        if found:
            return found
        model = self._manager.route(text)
        return {model.entry.version: model}

    async def unload(self, name: str) -> None:
        """Unloads a version, or every loaded one of a name; harmless if none is loaded.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND; WRONG_STATE while an alias points at it.
        """
        versions = [key for key in self._manager.catalogue.loaded if key.name == name]
        for model in [str(key) for key in versions] or [name]:
            await self._manager.unload(model)


# MERGED: ModelStreamInfer's requests, each of which may fail by itself.


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


# MERGED: Calls of the Open Inference Protocol that this server does not offer, refused with a
# reason.


_SHARED = "shared memory is not offered: send and take tensors in the messages"
_ELSEWHERE = "is a matter of the server's configuration, not of its clients"

#: By the name of the call, why.
UNOFFERED = {
    **{
        f"{kind}SharedMemory{verb}": _SHARED
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": f"tracing {_ELSEWHERE}",
    "LogSettings": f"logging {_ELSEWHERE}",
}
_SERVICE = "/inference.GRPCInferenceService/"


class UnofferedCalls(grpc.GenericRpcHandler):
    """Knows their names alone; any other is unknown to the server, and gRPC says so."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        reason = UNOFFERED.get(method.removeprefix(_SERVICE))
        if reason is None or not method.startswith(_SERVICE):
            return None

        async def refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            raise MultigrainError(ErrorKind.UNSUPPORTED, reason)

        return grpc.unary_unary_rpc_method_handler(refuse)


# MERGED: The Open Inference Protocol: messages in, the core's answers out.


# ruff: noqa: N802 - the methods have the names of the protocol


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
