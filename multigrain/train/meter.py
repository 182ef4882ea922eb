"""Speed of training: images a second, share of time spent waiting for data, time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Meter:
    """Times the steps of one worker.

    The figures are means over the latest ``window`` steps. The first two steps of a run compile
    their graphs, so they are left out once there are others.

    Args:
        images_per_step: images of one step over all workers.
        window: steps that the means look back.
    """

    def __init__(self, images_per_step: int, window: int = 50) -> None:
        self._images = images_per_step
        self._seconds: deque[float] = deque(maxlen=window)
        self._waits: deque[float] = deque(maxlen=window)
        self._steps = 0
        self._wait = 0.0
        self._aside = 0.0
        self._last = time.monotonic()

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Passes batches on, adding the time spent in getting each to the data wait."""
        while True:
            begin = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._wait += time.monotonic() - begin
            yield batch

    def step_done(self) -> float:
        """Ends a step that began when the previous one ended; returns its seconds."""
        now = time.monotonic()
        seconds = now - self._last
        if self._steps == 2:
            self._seconds.clear()
            self._waits.clear()
        self._seconds.append(seconds)
        self._waits.append(min(self._wait, seconds))
        self._steps += 1
        self._last = now
        self._wait = 0.0
        return seconds

    def aside_done(self) -> None:
        """Ends what was done since the latest step and belongs to none: an evaluation, say."""
        now = time.monotonic()
        self._aside += now - self._last
        self._last = now

    @property
    def images_per_second(self) -> float:
        total = sum(self._seconds)
        return self._images * len(self._seconds) / total if total > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the time, 0..1."""
        total = sum(self._seconds)
        return sum(self._waits) / total if total > 0 else 0.0

    def eta_seconds(self, steps_left: int) -> float:
        """Seconds that ``steps_left`` steps take at the present speed, with as much aside of them
        as so far; -1 before the first."""
        if not self._seconds:
            return -1.0
        step = sum(self._seconds) / len(self._seconds)
        return steps_left * (step + self._aside / self._steps)
