"""What a call is refused with."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """By a handler of the server: with a request id, and without its insides."""
    error = await status_of(call)
    assert "Traceback" not in str(error.details())
    assert dict(error.trailing_metadata() or ())["x-request-id"]
    return error


def detail(error: grpc.aio.AioRpcError, kind: type) -> Any:
    """The detail of that type."""
    status = rpc_status.from_call(error)
    assert status is not None
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__}")
