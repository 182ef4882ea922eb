"""What the interceptor does for every call, without a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from multigrain_server.grpc import interceptor as interceptor_module
from multigrain_server.grpc.drain import InFlightCalls
from multigrain_server.grpc.interceptor import CallInterceptor
from multigrain_server.metrics.requests import RequestMetrics


class GoneContext:
    """The context of a call whose client has gone, so that no status can be sent."""

    def invocation_metadata(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5"

    async def abort(self, *status: object) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")


async def test_cancellation_while_an_error_is_sent_is_no_server_error() -> None:
    calls, registry = InFlightCalls(), CollectorRegistry()
    interceptor = CallInterceptor(calls, RequestMetrics(registry), Access(AccessConfig()))

    async def too_late(request: object, context: object) -> None:
        raise MultigrainError(ErrorKind.DEADLINE, "the deadline passed")

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(too_late)

    details = SimpleNamespace(method="/multigrain.v1.EmbeddingService/Embed")
    wrapped = await interceptor.intercept_service(handler, details)  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await wrapped.unary_unary(b"", GoneContext())
    assert calls.in_flight == 0
    labels = {"rpc": "EmbeddingService/Embed", "code": "DEADLINE_EXCEEDED"}
    assert registry.get_sample_value("multigrain_requests_total", labels) == 1


class RefusedContext(GoneContext):
    """The context of a call that is refused; calls ``aborted`` when the status is sent."""

    def __init__(self, aborted: Callable[[], None]) -> None:
        self._aborted = aborted

    async def abort(self, *status: object) -> None:
        self._aborted()
        raise grpc.aio.AbortError


@pytest.mark.parametrize("drains", [False, True], ids=["wrong request", "draining"])
async def test_refused_stream_is_discarded_before_the_status_is_sent(
    drains: bool,
) -> None:
    calls = InFlightCalls()
    interceptor = CallInterceptor(
        calls, RequestMetrics(CollectorRegistry()), Access(AccessConfig())
    )
    read: list[int] = []
    read_before_abort: list[int] = []

    async def messages() -> AsyncIterator[bytes]:
        for number in range(50):
            await asyncio.sleep(0)
            read.append(number)
            yield b""

    async def wrong(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for _ in requests:
            raise MultigrainError.field("images", "is empty")
        yield b""

    async def handler(_details: object) -> Any:
        return grpc.stream_stream_rpc_method_handler(wrong)

    if drains:
        await calls.drain(0)
    details = SimpleNamespace(method="/multigrain.v1.EmbeddingService/EmbedStream")
    wrapped = await interceptor.intercept_service(handler, details)  # type: ignore[arg-type]
    context = RefusedContext(lambda: read_before_abort.extend(read))
    with pytest.raises(grpc.aio.AbortError):
        await anext(wrapped.stream_stream(messages(), context))
    assert read_before_abort == list(range(50))
    assert calls.in_flight == 0


@pytest.mark.parametrize(
    ("method", "error", "level"),
    [
        ("/multigrain.v1.JobService/GetJob", None, "info"),
        ("/multigrain.v1.JobService/GetJob", ErrorKind.NOT_FOUND, "warning"),
        ("/multigrain.v1.JobService/GetJob", ErrorKind.OVERLOADED, "warning"),
        ("/multigrain.v1.JobService/GetJob", ErrorKind.CANCELLED, "debug"),
        ("/multigrain.v1.EmbeddingService/Embed", None, "debug"),
        ("/multigrain.v1.EmbeddingService/Embed", ErrorKind.OVERLOADED, "debug"),
        ("/multigrain.v1.EmbeddingService/Embed", ErrorKind.NOT_FOUND, "warning"),
        ("/multigrain.v1.EmbeddingService/EmbedStream", None, "info"),
        ("/inference.GRPCInferenceService/ModelInfer", None, "debug"),
        ("/grpc.health.v1.Health/Check", None, "debug"),
        ("/grpc.health.v1.Health/Check", ErrorKind.NOT_FOUND, "debug"),
    ],
)
async def test_log_level_of_a_call(
    caplog: pytest.LogCaptureFixture, method: str, error: ErrorKind | None, level: str
) -> None:
    caplog.set_level(logging.DEBUG, interceptor_module.__name__)
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Access(AccessConfig())
    )

    async def handle(_request: object, _context: object) -> bytes:
        if error is not None:
            raise MultigrainError(error, "no")
        return b""

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(handle)

    details = SimpleNamespace(method=method)
    wrapped = await interceptor.intercept_service(handler, details)  # type: ignore[arg-type]
    with capture_logs() as lines, suppress(grpc.aio.AbortError):
        await wrapped.unary_unary(b"", RefusedContext(lambda: None))
    assert [(line["event"], line["log_level"]) for line in lines] == [("call", level)]


async def test_no_line_is_built_below_the_level_that_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Access(AccessConfig())
    )

    async def handle(_request: object, _context: object) -> bytes:
        return b""

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(handle)

    details = SimpleNamespace(method="/multigrain.v1.EmbeddingService/Embed")
    wrapped = await interceptor.intercept_service(handler, details)  # type: ignore[arg-type]
    caplog.set_level(logging.INFO, interceptor_module.__name__)
    with capture_logs() as lines:
        await wrapped.unary_unary(b"", GoneContext())
    assert lines == []
