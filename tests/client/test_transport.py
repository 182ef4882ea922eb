"""The status of a call that the server ends while the client is still sending."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from multigrain_client import RetryPolicy, Unavailable, methods
from multigrain_client.aio.transport import AsyncTransport, FirstStatus
from multigrain_client.channel import channel_config

UNWRITTEN = aio.AioRpcError(
    grpc.StatusCode.INTERNAL, aio.Metadata(), aio.Metadata(), "Internal error from Core"
)


class _Refusing(grpc.GenericRpcHandler):
    """Ends every call at once with ALREADY_EXISTS, without reading its requests."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def refuse(requests: Any, context: aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "it is there")

        if details.method == "/test/Stream":
            return grpc.stream_stream_rpc_method_handler(refuse)
        return grpc.stream_unary_rpc_method_handler(refuse)


async def _requests() -> AsyncIterator[bytes]:
    for _ in range(50):
        yield bytes(1 << 16)


async def test_status_of_the_server_survives_a_failed_write():
    server = aio.server(handlers=[_Refusing()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(30):
                call = channel.stream_stream("/test/Stream")(_requests())
                status = FirstStatus(call)
                with pytest.raises(aio.AioRpcError) as caught:
                    async for _ in call:
                        pass
                error = status.of(caught.value)
                assert error.code() is grpc.StatusCode.ALREADY_EXISTS
                assert error.details() == "it is there"
    finally:
        await server.stop(0)


class _Call:
    """A call whose status never arrives."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        pass


def test_failed_write_before_the_status_is_unavailable():
    error = FirstStatus(_Call()).of(UNWRITTEN)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "the connection ended" in str(error.details())


def test_internal_error_of_the_server_is_kept():
    own = aio.AioRpcError(grpc.StatusCode.INTERNAL, aio.Metadata(), aio.Metadata(), "a defect")
    assert FirstStatus(_Call()).of(own) is own


class _FailingCall(_Call):
    """A stream that ends with the error of a failed write."""

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> None:
        raise UNWRITTEN

    def cancel(self) -> None:
        pass


async def test_stream_reports_the_real_status_after_a_failed_write():
    transport = AsyncTransport(channel_config("here:1"), None, RetryPolicy())
    with pytest.raises(Unavailable):
        await anext(transport._messages(_FailingCall(), methods.EMBED_STREAM))
