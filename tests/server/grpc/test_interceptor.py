"""What the interceptor does for every call, without a connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from multigrain_server.grpc.calls import Calls
from multigrain_server.grpc.interceptor import CallInterceptor
from multigrain_server.metrics.requests import RequestMetrics


class GoneContext:
    """Of a call whose caller has gone: no status can be sent any more."""

    def invocation_metadata(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

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
