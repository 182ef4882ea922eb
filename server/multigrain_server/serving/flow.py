"""What one engine has before it, and how fast it works that off, as measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_WINDOW_SECONDS = 0.25
_WINDOW_ITEMS = 8
_NEWEST = 0.3
_SPREAD_NS = 5_000_000_000


@dataclass(slots=True)
class _Caller:
    """Images of one caller that are in work, and the latest of their deadlines; 0 = none."""

    items: int
    deadline_ns: int


class Flow:
    """Images on their way into and out of one engine.

    Args:
        rate: images a second, to begin with; 0 = not known.
        full: images in work from which on the engine is busy all the time, so that its pace is
            a measure of what it can do.
        clock_ns: CLOCK_MONOTONIC, in nanoseconds.
    """

    def __init__(
        self, rate: float, full: int, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.rate = rate
        self.items = 0
        self._full = full
        self._clock_ns = clock_ns
        self._callers: dict[int, _Caller] = {}
        self._window_ns = 0
        self._finished = 0
        self._retry_ns = 0

    def enter(self, caller: int, items: int, deadline_ns: int) -> None:
        self.items += items
        known = self._callers.get(caller)
        if known is None:
            self._callers[caller] = _Caller(items, deadline_ns)
        else:
            known.items += items
            known.deadline_ns = max(known.deadline_ns, deadline_ns)
        if not self._window_ns and self.items >= self._full:
            self._window_ns, self._finished = self._clock_ns(), 0

    def leave(self, caller: int, items: int, *, answered: bool) -> None:
        """``answered`` by the engine: what was given up says nothing of its pace."""
        known = self._callers[caller]
        known.items -= items
        if not known.items:
            del self._callers[caller]
        self.items -= items
        if self._window_ns:
            self._measure(items if answered else 0)

    def seconds_before(self, caller: int, items: int, deadline_ns: int) -> float:
        """How long images would take that came now, with all that would be computed before the
        last of them: engines let callers take turns, and of equals the earliest deadline goes
        first. 0 while nothing is known of the pace."""
        if not self.rate:
            return 0.0
        own = self._callers.get(caller)
        turns = items + (own.items if own is not None else 0)
        before = turns
        for number, other in self._callers.items():
            if number == caller:
                continue
            urgent = 0 < other.deadline_ns <= (deadline_ns or other.deadline_ns)
            before += other.items if urgent else min(other.items, turns)
        return before / self.rate

    def retry_seconds(self, items: int, wait: float) -> float:
        """When to come again who is refused now and has to wait ``wait`` seconds at least.

        Each who is refused gets a later time, as far apart as the engine is fast: if all came
        back at once, most would be refused again. Within limits: not all come back.
        """
        now = self._clock_ns()
        apart = int(1e9 * items / self.rate) if self.rate else 0
        soonest = now + int(1e9 * wait)
        self._retry_ns = min(max(self._retry_ns + apart, soonest), soonest + _SPREAD_NS)
        return (self._retry_ns - now) / 1e9

    def _measure(self, items: int) -> None:
        self._finished += items
        now = self._clock_ns()
        seconds = (now - self._window_ns) / 1e9
        if seconds >= _WINDOW_SECONDS and self._finished >= _WINDOW_ITEMS:
            newest = self._finished / seconds
            self.rate += (_NEWEST if self.rate else 1.0) * (newest - self.rate)
            self._window_ns, self._finished = now, 0
        if self.items < self._full:
            # From here on it may be idle now and then.
            self._window_ns = 0
