"""Bounds the log lines of calls that fail: whoever may connect could fill the disk with them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextvars import Context

import structlog

_log = structlog.get_logger(__name__)

_WINDOW_SECONDS = 10.0
# Lines of a window: so many of one host and code, and of all together.
_LINES_OF_HOST = 5
_LINES = 20
# Hosts that are counted by name in a window; more are counted together.
_HOSTS = 16
_OTHERS = "others"


def _later(seconds: float, call: Callable[[], None]) -> None:
    # Not in the context of the call that happens to be the first: its request id and token would be
    # on the line.
    asyncio.get_running_loop().call_later(seconds, call, context=Context())


class FailedCallLines:
    """Which failed calls get a line of their own; the others are counted in one every 10 seconds.

    Metrics count them all.

    Args:
        clock: in seconds, monotonic.
        later: calls a function after some seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] = _later,
    ) -> None:
        self._clock = clock
        self._later = later
        self._since = -_WINDOW_SECONDS
        self._lines: Counter[tuple[str, str]] = Counter()
        self._codes: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()

    def allow(self, code: str, host: str) -> bool:
        """Whether a call is logged on its own.

        Args:
            code: name of its status.
            host: where it came from.
        """
        now = self._clock()
        if now - self._since >= _WINDOW_SECONDS:
            Context().run(self._report)
            self._since = now
        if self._lines.total() < _LINES and self._lines[host, code] < _LINES_OF_HOST:
            self._lines[host, code] += 1
            return True
        if not self._codes:
            self._later(_WINDOW_SECONDS - (now - self._since), self._report)
        self._codes[code] += 1
        known = host in self._hosts or len(self._hosts) < _HOSTS
        self._hosts[host if known else _OTHERS] += 1
        return False

    def _report(self) -> None:
        """Logs the counts, and starts to count again."""
        if self._codes:
            _log.warning(
                "calls failed that have no line of their own",
                calls=self._codes.total(),
                codes=dict(self._codes.most_common()),
                hosts=dict(self._hosts.most_common()),
            )
        self._lines.clear()
        self._codes.clear()
        self._hosts.clear()
