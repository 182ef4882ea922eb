"""How long batches take, as measured: what would be too late need not be begun."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

import numpy as np

from multigrain.engine.runtime.base import Runtime

_KEPT = 8
_DOUBT = 0.98


class Pace:
    """Seconds of batches at one resolution, by size. One lock, that of the batcher, guards it.

    Args:
        best: the size beyond which larger batches gain nothing.
    """

    def __init__(self, best: int) -> None:
        self.best = best
        self._seconds: dict[int, deque[float]] = {}
        self._trust = 1.0

    def measured(self, size: int, seconds: float) -> None:
        self._seconds.setdefault(size, deque(maxlen=_KEPT)).append(seconds)
        self._trust = 1.0

    def seconds(self, size: int) -> float:
        """What a batch of ``size`` should take, or one a little smaller; 0 while nothing is known.

        The median of the last few: other work on the machine makes a batch slow once, and
        nobody who could be answered in time shall be refused for that.
        """
        known = [other for other in self._seconds if other <= size]
        return self._trust * median(self._seconds[max(known)]) if known else 0.0

    @property
    def rate(self) -> float:
        """Images a second in batches of the best size; 0 while nothing is known."""
        seconds = self.seconds(self.best)
        return self.best / seconds if seconds else 0.0

    def doubt(self) -> None:
        """Something was refused because of these figures, which therefore are not renewed:
        trust them a little less, lest a slow hour be believed in for ever."""
        self._trust *= _DOUBT


def measure(runtime: Runtime, resolution: int) -> Pace:
    """Times the smallest and the best batch, each twice: something to go by at first."""
    pace = Pace(runtime.best_batch)
    for size in sorted({1, runtime.best_batch}):
        images = list(np.zeros((size, resolution, resolution, 3), np.uint8))
        for _ in range(2):
            start = time.perf_counter()
            runtime.run_pixels(images)
            pace.measured(size, time.perf_counter() - start)
    return pace
