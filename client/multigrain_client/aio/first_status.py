"""The status that ended a call, kept from gRPC's own overwriting."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
from grpc import aio

T = TypeVar("T")

# What grpc.aio says of a call whose request could not be written, whatever ended the call.
_UNWRITTEN = "Internal error from Core"


class FirstStatus:
    """Keeps how a call that sends a stream of requests really ended.

    A server may end such a call before the client has sent everything: it refuses, or its
    connection breaks. The write that is then under way fails, and grpc.aio replaces the status
    of the call, wherever that has arrived already, by INTERNAL (grpc issue 36066).
    """

    def __init__(self, call: Any) -> None:
        self._error: aio.AioRpcError | None = None
        call.add_done_callback(self._ended)

    def of(self, error: aio.AioRpcError) -> aio.AioRpcError:
        """``error``, or what it has replaced.

        Where the failed write came first, the reason never arrives: UNAVAILABLE, since all
        that is known is that the connection took no more.
        """
        if not _unwritten(error):
            return error
        if self._error is not None:
            return self._error
        return aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE,
            error.initial_metadata(),
            error.trailing_metadata(),
            "the connection ended while a request was being sent",
            error.debug_error_string(),
        )

    def _ended(self, call: Any) -> None:
        code = _result(call.code())
        if code is grpc.StatusCode.OK:
            return
        error = aio.AioRpcError(
            code,
            aio.Metadata(),
            _result(call.trailing_metadata()),
            _result(call.details()),
        )
        if not _unwritten(error):
            self._error = error


def _unwritten(error: aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _UNWRITTEN


def _result(finished: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for: those of a call that is done."""
    try:
        finished.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    finished.close()
    raise RuntimeError("a call that is done has no status yet")
