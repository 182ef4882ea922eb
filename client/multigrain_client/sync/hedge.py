"""A call made a second time when the first is slow."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any


def hedged(begin: Callable[[float | None], Any], after: float, remaining: float | None) -> Any:
    """The answer of the call that is answered first; the other is cancelled.

    An error of one counts only when the other has failed as well.

    Args:
        begin: starts a call with so many seconds to its deadline; returns gRPC's future.
        after: seconds until the second call.
        remaining: seconds to the deadline of both; None = none.

    Raises:
        grpc.RpcError: of the call that failed last.
    """
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    started = time.monotonic()

    def start(seconds: float | None) -> Any:
        call = begin(seconds)
        call.add_done_callback(ended.put)
        return call

    calls = [start(remaining)]
    try:
        try:
            return ended.get(timeout=after).result()
        except queue.Empty:
            pass
        left = None if remaining is None else remaining - (time.monotonic() - started)
        if left is None or left > 0:
            calls.append(start(left))
        for running in range(len(calls) - 1, -1, -1):
            call = ended.get()
            if running == 0 or call.exception() is None:
                return call.result()
        raise AssertionError("unreachable: the last call returns or raises")
    finally:
        for call in calls:
            call.cancel()
