"""GRPCInferenceService: the Open Inference Protocol."""

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
from multigrain_server.access.client import origin
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
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import new_caller
from multigrain_server.grpc.interceptor import deadline_ns, log_request_id
from multigrain_server.models.catalog import ModelCatalog, ModelView
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.manager import ModelManager
from multigrain_server.models.registry import ModelReference, ModelVersion
from multigrain_server.service_names import INFERENCE
from multigrain_server.serving.service import ImageResponse, ImageService
from multigrain_server.serving.stream import RequestStream

_NOT_LOADED = (ErrorKind.NOT_FOUND, ErrorKind.WRONG_STATE, ErrorKind.UNAVAILABLE)


class InferenceModels:
    """Finds models by the protocol's names and versions.

    Args:
        catalog: the models.
    """

    def __init__(self, catalog: ModelCatalog) -> None:
        self._catalog = catalog

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
        requested = ModelReference.parse(f"{known.name}@{version}", "model_version")
        if known.version not in (None, requested.version):
            raise MultigrainError.field("model_version", f"is {version}, but the name says {known}")
        if self._catalog.is_alias(known.name):
            target = self._catalog.find(known.name).version
            if target.version != requested.version:
                raise MultigrainError(
                    ErrorKind.NOT_FOUND, f"{known.name} is an alias of {target}, not of {requested}"
                )
            return str(target)
        return str(requested)

    def ready(self, name: str, version: str) -> bool:
        """Whether it answers; False also for a model that does not exist."""
        try:
            return self._catalog.route(self.reference(name, version)).state is ModelState.READY
        except MultigrainError as error:
            if error.kind in _NOT_LOADED:
                return False
            raise

    def view(self, name: str, version: str) -> ModelView:
        """The version that answers a name; if none is loaded, the newest on disk.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND.
        """
        text = self.reference(name, version)
        try:
            return self._catalog.describe(self._catalog.route(text).entry)
        except MultigrainError as error:
            if not text or error.kind not in _NOT_LOADED:
                raise
            return self._catalog.view(text)

    def views(self) -> list[ModelView]:
        """Every version on disk."""
        return self._catalog.views()

    def versions(self, name: str) -> list[int]:
        """The versions of a model on disk."""
        return [
            view.entry.version.version for view in self.views() if view.entry.version.name == name
        ]

    def loaded(self, name: str, version: str) -> dict[ModelVersion, LoadedModel]:
        """All loaded models, the loaded versions of a name, or the one version that is meant.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE if none of these is loaded.
        """
        text = self.reference(name, version)
        loaded = self._catalog.loaded
        if not text:
            return dict(loaded)
        found = {key: model for key, model in loaded.items() if key.name == text}
        if found:
            return found
        model = self._catalog.route(text)
        return {model.entry.version: model}

    def versions_to_unload(self, name: str) -> list[str]:
        """Every loaded version of a name, as "name@version"; or else ``name`` itself."""
        return [str(key) for key in self._catalog.loaded if key.name == name] or [name]


@dataclass(frozen=True)
class StreamRequest:
    """A message of a stream, and its request or why it is not valid."""

    message: service_pb2.ModelInferRequest
    parsed: InferRequest | None = None
    error: MultigrainError | None = None

    @property
    def images(self) -> Sequence[bytes]:
        return self.parsed.request.images if self.parsed is not None else ()


@dataclass(frozen=True)
class StreamReply:
    """A message of a stream with its response, or with the error."""

    message: service_pb2.ModelInferRequest
    parsed: InferRequest | None = None
    response: ImageResponse | None = None
    error: MultigrainError | None = None


class StreamService:
    """An image service for a stream that continues after a failed request."""

    def __init__(self, service: ImageService) -> None:
        self._service = service
        self._caller = new_caller()

    async def infer(self, request: StreamRequest, /) -> StreamReply:
        message = request.message
        if request.parsed is None:
            return StreamReply(message, error=request.error)
        try:
            response = await self._service.infer(
                replace(request.parsed.request, caller=self._caller)
            )
        except MultigrainError as error:
            return StreamReply(message, error=error)
        return StreamReply(message, request.parsed, response)


_SHARED = "shared memory is not offered: send and receive tensors in the messages"
_ELSEWHERE = "is set in the server's configuration, not by clients"

#: Why a call is not offered, by its name.
UNOFFERED = {
    **{
        f"{kind}SharedMemory{verb}": _SHARED
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": f"tracing {_ELSEWHERE}",
    "LogSettings": f"logging {_ELSEWHERE}",
}
_SERVICE = f"/{INFERENCE}/"


class UnofferedCalls(grpc.GenericRpcHandler):
    """Refuses calls of the protocol that this server does not offer, with a reason.

    It knows their names only; gRPC itself refuses any other.
    """

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
# With this header a stream ends with a status at the first error.
_STATUS_HEADER = "triton_grpc_error"


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Raises MultigrainError; the server's interceptor makes a status of it.

    Args:
        manager: loads and unloads models.
        service: computes images.
        config: limits of serving.
        accepting: whether the daemon takes requests.
    """

    def __init__(
        self,
        manager: ModelManager,
        service: ImageService,
        config: ServingConfig,
        accepting: Callable[[], bool],
    ) -> None:
        self._manager = manager
        self._service = service
        self._config = config
        self._accepting = accepting
        self._catalog = manager.catalog
        self._models = InferenceModels(manager.catalog)

    async def ServerLive(
        self, request: service_pb2.ServerLiveRequest, context: Context
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: service_pb2.ServerReadyRequest, context: Context
    ) -> service_pb2.ServerReadyResponse:
        # Without any model the server is ready for RepositoryModelLoad.
        able = self._catalog.default_state() in (None, ModelState.READY)
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
            for version in self._catalog.loaded
            if version.name == view.entry.version.name
        ]
        return config_message(view, loaded, self._config)

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
        parsed = self._parse(request, context)
        return self._response(await self._service.infer(parsed.request), parsed)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[service_pb2.ModelInferRequest], context: Context
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        strict = _wants_status(context)

        async def requests() -> AsyncIterator[StreamRequest]:
            async for message in request_iterator:
                try:
                    yield StreamRequest(message, self._parse(message, context))
                except MultigrainError as error:
                    yield StreamRequest(message, error=error)

        stream = RequestStream(StreamService(self._service), self._config.stream_window)
        replies = stream.replies(requests())
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
        for model in self._models.versions_to_unload(request.model_name):
            await self._manager.unload(model)
        return model_pb2.RepositoryModelUnloadResponse()

    def _parse(self, message: service_pb2.ModelInferRequest, context: Context) -> InferRequest:
        now = time.monotonic_ns()
        sender = origin.get()
        try:
            return infer_request(
                message,
                self._models.reference(message.model_name, message.model_version),
                max_images=self._config.max_images_per_request,
                sender=sender,
                received_ns=now,
                deadline_ns=deadline_ns(context, now),
            )
        except MultigrainError:
            # Malformed tensors, or a model that does not exist.
            self._service.pacing.count(sender.client, [], [message.ByteSize()])
            raise

    def _reply(self, reply: StreamReply) -> service_pb2.ModelInferResponse:
        if reply.error is not None:
            raise reply.error
        assert reply.parsed is not None
        assert reply.response is not None
        return self._response(reply.response, reply.parsed)

    def _response(
        self, response: ImageResponse, parsed: InferRequest
    ) -> service_pb2.ModelInferResponse:
        start = time.monotonic()
        message = infer_response(response, parsed)
        self._service.encoded(response, time.monotonic() - start)
        return message


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
