"""What a call says about its caller: its deadline, and the id it gave to its request."""

from __future__ import annotations

from typing import Any

import grpc.aio
import structlog

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
