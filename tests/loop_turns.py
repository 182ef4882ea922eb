"""Measures for how long an event loop does not turn, in CPU time: what else the machine does at
the same time does not count."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LONGEST = 0.15
"""CPU seconds of a turn that tests allow; the daemon's goal is 0.05 on an ordinary machine."""


@dataclass
class Turns:
    """``longest`` CPU seconds of one turn: of all callbacks that were ready at its start."""

    longest: float = 0.0
    count: int = 0


@contextmanager
def loop_turns() -> Iterator[Turns]:
    """Measures the turns of the running loop's thread while the block runs.

    Python's garbage collector leaves out what exists already: a test process has far more of it
    than a daemon.
    """
    found = Turns()
    original = asyncio.base_events.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def run_once(self: Any) -> None:
        start = time.thread_time()
        original(self)
        found.longest = max(found.longest, time.thread_time() - start)
        found.count += 1

    asyncio.base_events.BaseEventLoop._run_once = run_once  # type: ignore[attr-defined]
    gc.freeze()
    try:
        yield found
    finally:
        gc.unfreeze()
        asyncio.base_events.BaseEventLoop._run_once = original  # type: ignore[attr-defined]
