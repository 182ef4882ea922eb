"""What the interceptor does for every call, without a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from multigrain_server.grpc.drain import Calls
from multigrain_server.grpc.interceptor import CallInterceptor
from multigrain_server.metrics.requests import RequestMetrics


class GoneContext:
    """Of a call whose caller has gone: no status can be sent any more."""

    def invocation_metadata(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5"

    async def abort(self, *status: object) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")


async def test_a_caller_that_goes_away_while_its_error_is_sent_is_no_error_of_the_server() -> None:
    calls, registry = Calls(), CollectorRegistry()
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
    """Of a call that is refused; calls ``told`` when its caller hears of it."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told

    async def abort(self, *status: object) -> None:
        self._told()
        raise grpc.aio.AbortError


@pytest.mark.parametrize("drains", [False, True], ids=["wrong request", "draining"])
async def test_what_a_refused_caller_is_still_sending_is_read_before_it_is_told(
    drains: bool,
) -> None:
    calls = Calls()
    interceptor = CallInterceptor(
        calls, RequestMetrics(CollectorRegistry()), Access(AccessConfig())
    )
    read: list[int] = []
    read_before_it_was_told: list[int] = []

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
    context = RefusedContext(lambda: read_before_it_was_told.extend(read))
    with pytest.raises(grpc.aio.AbortError):
        await anext(wrapped.stream_stream(messages(), context))
    assert read_before_it_was_told == list(range(50))
    assert calls.in_flight == 0
