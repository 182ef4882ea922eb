"""What every call gets: a request id, authorization, a log line, metrics, and errors as status."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.access import Access
from multigrain_server.convert.errors import internal_error, wire_error
from multigrain_server.convert.events import passthrough_bytes
from multigrain_server.grpc.drain import Calls
from multigrain_server.metrics.requests import RequestMetrics
from multigrain_server.tracing.call import CallTrace, Tracing, call_trace

# Characters of a caller's request id that are logged.
_LOGGED_ID = 128
# gRPC counts a call without a deadline as one of centuries.
_NO_DEADLINE_SECONDS = 10 * 365 * 86_400


def log_request_id(request_id: str) -> None:
    """Puts the caller's id into the log lines of this call."""
    if request_id:
        structlog.contextvars.bind_contextvars(caller_request_id=request_id[:_LOGGED_ID])


def deadline_ns(context: grpc.aio.ServicerContext[Any, Any], now_ns: int) -> int:
    """The call's deadline on CLOCK_MONOTONIC in ns; 0 = none."""
    seconds = context.time_remaining()
    if seconds is None or seconds > _NO_DEADLINE_SECONDS:
        return 0
    return now_ns + max(1, int(seconds * 1e9))


# MERGED: Messages that cannot be read: the caller's mistake, which gRPC would call UNKNOWN.


_UNREADABLE = object()


def reading(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """The same, for :func:`readable` or :func:`all_readable` to look at the result."""

    def read(data: bytes) -> Any:
        try:
            return data if deserialize is None else deserialize(data)
        except Exception:  # DecodeError, or whatever a slower parser stumbles over
            return _UNREADABLE

    return read


def readable(message: Any) -> Any:
    """The message. Raises INVALID_FIELD if it could not be read."""
    if message is _UNREADABLE:
        raise MultigrainError(
            ErrorKind.INVALID_FIELD,
            "the bytes that arrived are not a message of this call: they are damaged, or the "
            "client has another contract",
        )
    return message


async def all_readable(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same for each message of a stream."""
    async for message in messages:
        yield readable(message)


# MERGED: What the caller of a client stream sends, readable even after the call was refused.


# A refused caller is read on until nothing comes for this long, and for so long at most.
_QUIET_SECONDS = 0.1
_MOST_SECONDS = 2.0

_END = object()


class Incoming:
    """The messages of one stream, in order. Who is cancelled while waiting for one loses none.

    Of a stream that ends while a message is being written, some clients (grpc.aio) hear that the
    writing failed, and never why. So whoever refuses one lets :meth:`read_on` drop what is still
    on its way before the caller is told.

    Args:
        messages: as gRPC gives them.
    """

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages
        # Apart from who waits for it: cancelled in the middle, gRPC's reading could not go on.
        self._next: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> Any:
        if self._next is None:
            self._next = asyncio.create_task(self._read())
        message = await asyncio.shield(self._next)
        if message is _END:
            raise StopAsyncIteration
        self._next = None
        return message

    async def read_on(self) -> None:
        """Reads and drops until the caller pauses or has sent all, for two seconds at most."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _MOST_SECONDS
        while loop.time() < until:
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    await anext(self)
            except (TimeoutError, StopAsyncIteration):
                return

    def close(self) -> None:
        """Waits for no further message."""
        if self._next is not None:
            self._next.cancel()

    async def _read(self) -> Any:
        return await anext(self._messages, _END)


# MERGED: What every call gets: a request id, a check, a log line, metrics, and errors as
# status.


_log = structlog.get_logger(__name__)

_STANDARD = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
_FREQUENT = frozenset(
    (
        "/multigrain.v1.EmbeddingService/Embed",
        "/multigrain.v1.EmbeddingService/Classify",
        "/inference.GRPCInferenceService/ModelInfer",
    )
)
# Endless by their nature; their callers go on elsewhere with what was not answered.
_RESUMABLE = frozenset(
    (
        "/multigrain.v1.EmbeddingService/EmbedStream",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    )
)
_GOOD_ID = re.compile(r"^[\x21-\x7e]{1,128}$")

Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all four shapes of calls."""

    def __init__(
        self,
        calls: Calls,
        metrics: RequestMetrics,
        access: Access,
        tracing: Tracing | None = None,
    ) -> None:
        self._calls = calls
        self._metrics = metrics
        self._wrapped: dict[str, Any] = {}
        self._access = access
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[bool(handler.request_streaming), bool(handler.response_streaming)]
        behaviour = next(
            found
            for found in (
                handler.unary_unary,
                handler.unary_stream,
                handler.stream_unary,
                handler.stream_stream,
            )
            if found is not None
        )
        wrap = self._stream if handler.response_streaming else self._single
        read: Any = all_readable if handler.request_streaming else readable
        if method in _RESUMABLE:
            read = self._all_readable_until_drained
        streams = bool(handler.request_streaming or handler.response_streaming)
        # Kept: only methods that exist come here, and each is wrapped the same way every time.
        self._wrapped[method] = make(
            wrap(lambda request, context: behaviour(read(request), context), method, streams),
            request_deserializer=reading(handler.request_deserializer),
            response_serializer=passthrough_bytes(handler.response_serializer),
        )
        return self._wrapped[method]

    def _all_readable_until_drained(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        return all_readable(self._calls.incoming(messages))

    def _single(self, behaviour: Any, method: str, streams: bool) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self._scope(method, request, context, streams) as received:
                return await behaviour(received, context)

        return call

    def _stream(self, behaviour: Any, method: str, streams: bool) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._scope(method, request, context, streams) as received:
                answers = behaviour(received, context)
                if not hasattr(answers, "__aiter__"):
                    # A handler that writes to the context by itself (health's Watch).
                    await answers
                    return
                try:
                    async for answer in answers:
                        yield answer
                finally:
                    await answers.aclose()

        return call

    @asynccontextmanager
    async def _scope(
        self, method: str, request: Any, context: Context, streams: bool
    ) -> AsyncIterator[Any]:
        """Around a handler, which gets what this yields in place of the request."""
        incoming = Incoming(request) if isinstance(request, AsyncIterator) else None
        request_id = _request_id(context)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        trace: CallTrace | None = None
        began = time.perf_counter()
        code, reason, counted = grpc.StatusCode.OK, "", False
        try:
            metadata = context.invocation_metadata() or ()
            peer = context.peer() if streams else ""
            with self._access.enter(method, metadata, stream_from=peer) as holder:
                if holder:
                    structlog.contextvars.bind_contextvars(token=holder)
                if self._tracing is not None:
                    trace = self._tracing.begin(method, tuple(metadata), request_id)
                    call_trace.set(trace)
                counted = self._calls.enter(method)
                yield request if incoming is None else incoming
        except (asyncio.CancelledError, GeneratorExit):
            # The caller went away, or its deadline passed.
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _code(context)
            raise
        except Exception as error:  # whatever it is, the caller must get a status
            if not isinstance(error, MultigrainError):
                _log.exception("call failed", method=method)
                error = internal_error(request_id)
            wire = wire_error(error, request_id)
            code, reason = wire.code, wire.details
            trailing = ((REQUEST_ID, request_id), *wire.trailing_metadata)
            if incoming is not None:
                await incoming.read_on()
            try:
                await context.abort(code, wire.details, trailing)
            except grpc.aio.InternalError:
                # The caller went away, or its deadline passed, while this was on its way: there
                # is nobody to tell, and nothing wrong with the server.
                raise asyncio.CancelledError from None
        finally:
            if incoming is not None:
                incoming.close()
            if counted:
                self._calls.leave()
            seconds = time.perf_counter() - began
            self._metrics.observe(method, code.name, seconds)
            if trace is not None:
                trace.end(code.name, reason)
            level = _level(method, code)
            # Making a line and throwing it away would cost as much as writing it.
            if _STANDARD.isEnabledFor(level):
                _log.log(
                    level,
                    "call",
                    method=method,
                    code=code.name,
                    seconds=round(seconds, 6),
                    **({"reason": reason} if reason else {}),
                )
            structlog.contextvars.unbind_contextvars("request_id", "token")


def _level(method: str, code: grpc.StatusCode) -> int:
    """Of a call's line. Hundreds of answered images a second, or of refusals under overload, are
    told by the metrics; admission logs an overload as such."""
    if code is grpc.StatusCode.CANCELLED or method.startswith("/grpc.health"):
        return logging.DEBUG
    if code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED) and method in _FREQUENT:
        return logging.DEBUG
    return logging.INFO if code is grpc.StatusCode.OK else logging.WARNING


def _request_id(context: Context) -> str:
    """The caller's id, if it is short and printable; else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _GOOD_ID.match(value):
            return value
    return secrets.token_hex(8)


def _code(context: Context) -> grpc.StatusCode:
    """The status that a handler aborted with by itself."""
    number = context.code()
    for code in grpc.StatusCode:
        if number in (code, code.value[0]):
            return code
    return grpc.StatusCode.UNKNOWN
