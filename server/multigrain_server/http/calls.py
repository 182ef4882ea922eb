"""Runs calls of the gRPC services for HTTP requests: same roles, limits, metrics and log lines."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from aiohttp import HttpVersion11, web
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import status_pb2

from multigrain.errors import MultigrainError
from multigrain_server.grpc.interceptor import REQUEST_ID, CallInterceptor, Context

M = TypeVar("M", bound=Message)

#: How HTTP says what a gRPC status says (google/rpc/code.proto has the mapping).
HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}
#: Seconds that the client waits at most, as a decimal number.
TIMEOUT_HEADER = "X-Request-Timeout"
_DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
# The headers that calls look at.
_METADATA = ("Authorization", "X-Request-Id", "traceparent", "tracestate")
_MOST_SECONDS = 1e6
# A client that reads nothing of a stream for so long is disconnected.
_STALL_SECONDS = 30.0
# The client of a stream that failed must receive the error within these seconds.
_LAST_SECONDS = 5.0

# Reads the request: its message.
Read = Callable[[web.Request], Awaitable[Message]]


class HttpContext:
    """What the interceptor and the services use of a gRPC context.

    Args:
        request: the HTTP request.
        read: reads its body, once the call is authorized.
        write: sends a message of a streamed response.
    """

    def __init__(
        self,
        request: web.Request,
        read: Read,
        write: Callable[[Any], Awaitable[None]] | None = None,
    ) -> None:
        self._request = request
        self._read = read
        self._write = write
        self._began = asyncio.get_running_loop().time()
        self.timeout = _timeout(request)
        self.status = grpc.StatusCode.OK
        self.details = ""
        self.trailers: dict[str, str | bytes] = {}

    def peer(self) -> str:
        name = self._request.transport and self._request.transport.get_extra_info("peername")
        if not isinstance(name, tuple):
            return "unix:"
        return f"ipv6:[{name[0]}]:{name[1]}" if ":" in name[0] else f"ipv4:{name[0]}:{name[1]}"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        headers = self._request.headers
        return tuple(
            (name.lower(), value) for name in _METADATA for value in headers.getall(name, ())
        )

    def time_remaining(self) -> float | None:
        if self.timeout is None:
            return None
        return self._began + self.timeout - asyncio.get_running_loop().time()

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self.trailers = dict(metadata)

    def code(self) -> grpc.StatusCode:
        return self.status

    async def read(self) -> Message:
        return await self._read(self._request)

    async def write(self, message: Any) -> None:
        assert self._write is not None
        await self._write(message)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        self.status, self.details = code, details
        self.trailers.update(trailing_metadata)
        raise grpc.aio.AbortError(details)

    def request_id(self) -> str:
        return str(self.trailers.get(REQUEST_ID, ""))

    def expired(self) -> web.Response:
        """The response to a call that took longer than its client waits."""
        self.status = grpc.StatusCode.DEADLINE_EXCEEDED
        self.details = f"not answered within {self.timeout:g} s ({TIMEOUT_HEADER})"
        return self.error()

    def error(self) -> web.Response:
        """The response to a call that was aborted."""
        return error_response(self._request, self.status, self.details, self.trailers)


def error_response(
    request: web.Request,
    code: grpc.StatusCode,
    message: str,
    trailers: Mapping[str, str | bytes],
) -> web.Response:
    """An error in the form of Google's APIs, ``{"error": {"code", "message", "status",
    "details"}}``; below /v2 in that of the Open Inference Protocol, ``{"error": message}``.

    Args:
        request: what it answers.
        code: the status that gRPC would send.
        message: its text.
        trailers: that gRPC would send: details, the delay before a retry, the request id.
    """
    number = HTTP_STATUS[code]
    headers = {}
    if REQUEST_ID in trailers:
        headers["X-Request-Id"] = str(trailers[REQUEST_ID])
    if _PUSHBACK in trailers:
        headers["Retry-After"] = str(max(1, math.ceil(int(trailers[_PUSHBACK]) / 1000)))
    if number == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="multigrain"'
    error: Any = message
    if not request.path.startswith("/v2"):
        error = {"code": number, "message": message, "status": code.name}
        details = trailers.get(_DETAILS)
        if isinstance(details, bytes):
            error["details"] = plain(status_pb2.Status.FromString(details)).get("details", [])
    return web.Response(
        status=number,
        body=json.dumps({"error": error}).encode(),
        headers=headers,
        content_type="application/json",
    )


class HttpCalls:
    """Runs calls.

    Args:
        interceptor: of its own: it knows gRPC's connections, which these have nothing to do with.
    """

    def __init__(self, interceptor: CallInterceptor) -> None:
        self._interceptor = interceptor

    async def unary(
        self,
        request: web.Request,
        method: str,
        handler: Callable[[Any, Any], Awaitable[M]],
        read: Read,
        respond: Callable[[M], web.Response],
    ) -> web.Response:
        """Runs a unary call.

        Args:
            request: the HTTP request.
            method: ``/package.Service/Method``.
            handler: the method of the service.
            read: makes its message from the request.
            respond: makes the HTTP response from the answer.
        """
        context = HttpContext(request, read)
        try:
            async with asyncio.timeout(context.timeout):
                answer = await self._run(method, handler, context, streams=False)
        except grpc.aio.AbortError:
            return context.error()
        except TimeoutError:
            return context.expired()
        response = respond(answer)
        response.headers["X-Request-Id"] = context.request_id()
        return response

    async def lines(
        self,
        request: web.Request,
        method: str,
        handler: Callable[[Any, Any], AsyncIterator[bytes]],
        read: Read,
        encode: Callable[[bytes], bytes],
    ) -> web.StreamResponse:
        """Runs a call with a streamed response, and sends that as lines of JSON (NDJSON).

        Args:
            encode: makes the lines of a message, each with its end of line.
        """
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
        )
        context: HttpContext

        async def write(message: bytes) -> None:
            if not response.prepared:
                response.headers["X-Request-Id"] = context.request_id()
                await response.prepare(request)
            try:
                async with asyncio.timeout(_STALL_SECONDS):
                    await response.write(encode(message))
            except (TimeoutError, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()
                # As when a client of gRPC has gone.
                raise grpc.aio.BaseError from None

        async def run(message: Any, _context: Any) -> None:
            async with aclosing(cast(Any, handler(message, context))) as answers:
                async for answer in answers:
                    await context.write(answer)

        context = HttpContext(request, read, write)
        error: web.Response | None = None
        try:
            async with asyncio.timeout(context.timeout):
                await self._run(method, run, context, streams=True)
        except grpc.aio.AbortError:
            error = context.error()
        except TimeoutError:
            error = context.expired()
        if error is not None and not response.prepared:
            return error
        if not response.prepared:
            await response.prepare(request)
        try:
            async with asyncio.timeout(_LAST_SECONDS if error is not None else None):
                if error is not None:
                    assert isinstance(error.body, bytes)
                    await response.write(error.body + b"\n")
                await response.write_eof()
        except TimeoutError:  # its client does not read
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _run(
        self, method: str, handler: Callable[..., Any], context: HttpContext, *, streams: bool
    ) -> Any:
        return await self._interceptor.run(
            method,
            handler,
            cast(Context, context),
            context.invocation_metadata(),
            streams=streams,
        )


def plain(message: Message) -> dict[str, Any]:
    """A message in its JSON form, with the field names of the protos and the values of all fields
    but messages and optional ones, so that class 0 has its number."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def json_response(message: Message) -> web.Response:
    """A message as the JSON body of a response."""
    return web.Response(body=json.dumps(plain(message)).encode(), content_type="application/json")


async def send_continue(request: web.Request) -> None:
    """Tells a client that waits for it (Expect: 100-continue) to send the body."""
    waits = request.headers.get("Expect", "").lower() == "100-continue"
    if waits and request.version == HttpVersion11 and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _timeout(request: web.Request) -> float | None:
    """Raises MultigrainError INVALID_FIELD."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MOST_SECONDS:
        raise MultigrainError.field(TIMEOUT_HEADER, "must be a number of seconds above 0")
    return seconds
