"""What every call gets: a request id, a log line, metrics, and errors as status."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import structlog

from multigrain.errors import MultigrainError
from multigrain_server.grpc.calls import Calls
from multigrain_server.grpc.errors import internal_error, wire_error
from multigrain_server.metrics.requests import RequestMetrics

_log = structlog.get_logger(__name__)

REQUEST_ID = "x-request-id"
_GOOD_ID = re.compile(r"^[\x21-\x7e]{1,128}$")

Context = grpc.aio.ServicerContext[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all four shapes of calls."""

    def __init__(self, calls: Calls, metrics: RequestMetrics) -> None:
        self._calls = calls
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
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
        return make(
            wrap(behaviour, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self._scope(method, context):
                return await behaviour(request, context)

        return call

    def _stream(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._scope(method, context):
                answers = behaviour(request, context)
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
    async def _scope(self, method: str, context: Context) -> AsyncIterator[None]:
        request_id = _request_id(context)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        began = time.perf_counter()
        code, reason, counted = grpc.StatusCode.OK, "", False
        try:
            counted = self._calls.enter(method)
            yield
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
            try:
                await context.abort(code, wire.details, trailing)
            except grpc.aio.InternalError:
                # The caller went away, or its deadline passed, while this was on its way: there
                # is nobody to tell, and nothing wrong with the server.
                raise asyncio.CancelledError from None
        finally:
            if counted:
                self._calls.leave()
            seconds = time.perf_counter() - began
            self._metrics.observe(method, code.name, seconds)
            level = _log.info if code is grpc.StatusCode.OK else _log.warning
            if code is grpc.StatusCode.CANCELLED or method.startswith("/grpc.health"):
                level = _log.debug
            level("call", method=method, code=code.name, seconds=round(seconds, 6), reason=reason)
            structlog.contextvars.unbind_contextvars("request_id")


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
