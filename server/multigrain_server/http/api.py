"""The HTTP API: embedding, classification, models and jobs, and the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import cache, partial
from importlib.resources import files
from typing import Any

from aiohttp import web

from multigrain.errors import MultigrainError
from multigrain.v1 import embedding_pb2, job_pb2, model_pb2
from multigrain.v1.inference import service_pb2
from multigrain_server import service_names
from multigrain_server.access.client import origin
from multigrain_server.convert.errors import wire_error
from multigrain_server.grpc.interceptor import CallInterceptor
from multigrain_server.grpc.services import Services
from multigrain_server.http.bodies import (
    from_query,
    parsed,
    read_body,
    read_images,
)
from multigrain_server.http.calls import (
    HttpCalls,
    Read,
    error_response,
    json_response,
    plain,
)
from multigrain_server.http.inference import (
    LENGTH_HEADER,
    RestRequest,
    read_request,
    response_parts,
)
from multigrain_server.serving.pacing import Pacing

_PREFIXES = ("/v1/", "/v2/")
_OPENAPI = "openapi.json"


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """The routes below /v1 and /v2.

    Args:
        services: what they call.
        interceptor: runs the calls.
        pacing: counts bodies that come to nothing.
        max_bytes: of a body with images.
        closed: why no call is accepted; "" = they are.
    """

    def __init__(
        self,
        services: Services,
        interceptor: CallInterceptor,
        pacing: Pacing,
        max_bytes: int,
        closed: str = "",
    ) -> None:
        self._services = services
        self._calls = HttpCalls(interceptor)
        self._pacing = pacing
        self._max_bytes = max_bytes
        self._closed = closed

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path belongs to the API, whether it exists or not."""
        return path.startswith(_PREFIXES) or path in ("/v2", f"/{_OPENAPI}")

    def routes(self) -> list[web.RouteDef]:
        """The routes for aiohttp."""
        model = "/v2/models/{name}"
        version = f"{model}/versions/{{version}}"
        return [
            _post("/v1/embed", self._embed),
            _post("/v1/classify", self._classify),
            web.get("/v1/models", self._list_models),
            web.get("/v1/models/{model}", self._model),
            web.get("/v1/jobs", self._list_jobs),
            web.get("/v1/jobs/{job_id}", self._job),
            # For HEAD, the lines would have to be left out.
            web.get("/v1/jobs/{job_id}/events", self._events, allow_head=False),
            web.get("/v2", self._server_metadata),
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._ready),
            *(web.get(path, self._model_metadata) for path in (model, version)),
            *(web.get(f"{path}/ready", self._model_ready) for path in (model, version)),
            *(_post(f"{path}/infer", self._infer) for path in (model, version)),
            web.get(f"/{_OPENAPI}", self._openapi),
        ]

    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The response of a route, errors included."""
        if self._closed:
            return api_error(request, web.HTTPForbidden(text=self._closed))
        try:
            return await handler(request)
        except web.HTTPException as error:
            return api_error(request, error)
        except MultigrainError as error:  # before the call began
            wire = wire_error(error, "")
            return error_response(request, wire.code, wire.details, dict(wire.trailing_metadata))

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.unary(
            request,
            service_names.EMBED,
            self._services.embedding.Embed,
            self._reading(partial(read_images, make=embedding_pb2.EmbedRequest)),
            json_response,
        )

    async def _classify(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.unary(
            request,
            service_names.CLASSIFY,
            self._services.embedding.Classify,
            self._reading(partial(read_images, make=embedding_pb2.ClassifyRequest)),
            json_response,
        )

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request,
            service_names.MODEL,
            self._services.models.ListModels,
            model_pb2.ListModelsRequest,
        )

    async def _model(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request, service_names.MODEL, self._services.models.GetModel, model_pb2.GetModelRequest
        )

    async def _list_jobs(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request, service_names.JOB, self._services.jobs.ListJobs, job_pb2.ListJobsRequest
        )

    async def _job(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request, service_names.JOB, self._services.jobs.GetJob, job_pb2.GetJobRequest
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.lines(
            request,
            service_names.STREAM_EVENTS,
            self._services.jobs.StreamEvents,
            _query(job_pb2.StreamEventsRequest),
            _event_lines,
        )

    async def _server_metadata(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request,
            service_names.INFERENCE,
            self._services.inference.ServerMetadata,
            service_pb2.ServerMetadataRequest,
        )

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request,
            service_names.INFERENCE,
            self._services.inference.ServerLive,
            service_pb2.ServerLiveRequest,
            respond=lambda answer: _state(answer, "live"),
        )

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request,
            service_names.INFERENCE,
            self._services.inference.ServerReady,
            service_pb2.ServerReadyRequest,
            respond=lambda answer: _state(answer, "ready"),
        )

    async def _model_metadata(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request,
            service_names.INFERENCE,
            self._services.inference.ModelMetadata,
            service_pb2.ModelMetadataRequest,
            respond=_metadata,
        )

    async def _model_ready(self, request: web.Request) -> web.StreamResponse:
        return await self._get(
            request,
            service_names.INFERENCE,
            self._services.inference.ModelReady,
            service_pb2.ModelReadyRequest,
            respond=lambda answer: _state(answer, "ready"),
        )

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        received: list[RestRequest] = []

        async def read(http: web.Request, limit: int) -> service_pb2.ModelInferRequest:
            body = await read_body(http, limit)
            found = await parsed(
                body,
                lambda data: read_request(
                    data,
                    http.headers.get(LENGTH_HEADER),
                    http.match_info["name"],
                    http.match_info.get("version", ""),
                ),
            )
            received.append(found)
            return found.message

        def respond(answer: service_pb2.ModelInferResponse) -> web.Response:
            head, tensors = response_parts(answer, received[0])
            if not tensors:
                return web.Response(body=head, content_type="application/json")
            return web.Response(
                body=b"".join((head, *tensors)),
                content_type="application/octet-stream",
                headers={LENGTH_HEADER: str(len(head))},
            )

        return await self._calls.unary(
            request,
            service_names.MODEL_INFER,
            self._services.inference.ModelInfer,
            self._reading(read),
            respond,
        )

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=_document(), content_type="application/json")

    async def _get(
        self,
        request: web.Request,
        service: str,
        handler: Callable[[Any, Any], Awaitable[Any]],
        make: Callable[[], Any],
        respond: Callable[[Any], web.Response] = json_response,
    ) -> web.StreamResponse:
        """A call whose message is in the path and the query."""
        method = f"/{service}/{handler.__name__}"
        return await self._calls.unary(request, method, handler, _query(make), respond)

    def _reading(self, read: Callable[..., Awaitable[Any]]) -> Read:
        """Reads a body with images; one that cannot be parsed came to nothing."""

        async def counted(request: web.Request) -> Any:
            try:
                return await read(request, limit=self._max_bytes)
            except MultigrainError:
                size = request.content.total_bytes
                self._pacing.count_unreadable(origin.get().client, size)
                raise

        return counted


@cache
def _document() -> bytes:
    return files("multigrain_server.http").joinpath(_OPENAPI).read_bytes()


def _post(path: str, handler: Handler) -> web.RouteDef:
    """A route that sends 100 Continue once the call is authorized, not before as aiohttp does."""

    async def expect(_request: web.Request) -> None:
        return None

    return web.post(path, handler, expect_handler=expect)


def api_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """The response to a request that does not become a call, in the form of other errors."""
    text = (error.text or error.reason).strip()
    headers = {}
    match error:
        case web.HTTPNotFound():
            text = f"there is no such route: /{_OPENAPI} lists them"
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            headers["Allow"] = allowed
            text = f"{error.method} is not allowed here, only {allowed}"
    made: Any = {"code": error.status, "message": text}
    if request.path.startswith("/v2"):
        made = text
    return web.Response(
        status=error.status,
        body=json.dumps({"error": made}).encode(),
        headers=headers,
        content_type="application/json",
    )


def _query(make: Callable[[], Any]) -> Read:
    async def read(request: web.Request) -> Any:
        return from_query(request, make(), **request.match_info)

    return read


def _state(answer: Any, name: str) -> web.Response:
    """The protocol has no body for a state: its status says it."""
    good = bool(getattr(answer, name))
    return web.Response(
        status=200 if good else 503,
        body=json.dumps({name: good}).encode(),
        content_type="application/json",
    )


def _metadata(answer: service_pb2.ModelMetadataResponse) -> web.Response:
    found = plain(answer)
    for kind in ("inputs", "outputs"):
        for tensor in found.get(kind, []):
            # 64-bit numbers are texts in the JSON form of messages.
            tensor["shape"] = [int(size) for size in tensor["shape"]]
    return web.Response(body=json.dumps(found).encode(), content_type="application/json")


def _event_lines(batch: bytes) -> bytes:
    events = job_pb2.JobEventBatch.FromString(batch).events
    return b"".join(json.dumps(plain(event)).encode() + b"\n" for event in events)
