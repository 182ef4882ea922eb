"""On PYTHONPATH: in every Python process the time of day jumps to and fro by an hour."""

from __future__ import annotations

import datetime
import os
import time

_HOUR = 3600
_real = time.time
_real_ns = time.time_ns


def _jump() -> int:
    return _HOUR * (int(time.monotonic() * 4) % 3 - 1)


def _time() -> float:
    return _real() + _jump()


def _time_ns() -> int:
    return _real_ns() + _jump() * 1_000_000_000


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return datetime.datetime.fromtimestamp(_time(), tz)


# Processes of the test only: whoever else has this folder on their path keeps their clock.
if os.environ.get("TEST_CLOCK") == "jumps":
    time.time = _time
    time.time_ns = _time_ns
    datetime.datetime = _Datetime  # type: ignore[misc]
