"""One image on its way through an engine."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.protocol import Submit
from multigrain.engine.runtimes.base import Runtime

#: Orders items: turn, deadline, arrival. Smaller goes first.
Rank = tuple[int, int, int]

# For an answer's way to its caller, which on a busy host takes tens of milliseconds; of short
# deadlines a twentieth.
_WAY_BACK_NS = 100_000_000


class Stage(Enum):
    """Where an image is."""

    WAITING = "waiting"
    DECODING = "decoding"
    DECODED = "decoded"
    COMPUTING = "computing"


class Drop(Enum):
    """Why an image was not computed: its caller went away, its deadline was too near for any
    engine like this, or there was too much before it."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    BUSY = "busy"


@dataclass(slots=True, eq=False)
class Item:
    """An image and what has become of it.

    Attributes:
        pixels: uint8 (S, S, 3) once it is decoded.
        tensor: instead, float32 (3, S, S), if it came prepared.
    """

    request: Submit
    data: bytes
    received_ns: int = field(default_factory=time.monotonic_ns)
    decode_ns: int = 0
    pixels: NDArray[np.uint8] | None = None
    tensor: NDArray[np.float32] | None = None
    stage: Stage = Stage.WAITING
    cancelled: bool = False
    rank: Rank = (0, 0, 0)

    def __lt__(self, other: Item) -> bool:
        return self.rank < other.rank

    @property
    def decoded_bytes(self) -> int:
        """What it takes once it is decoded."""
        return (12 if self.request.tensor else 3) * self.request.resolution**2

    def late(self, finish_ns: int) -> bool:
        """Whether finishing then would be too late for the answer to arrive in time."""
        deadline = self.request.deadline_ns
        if not deadline:
            return False
        way_back = min(_WAY_BACK_NS, (deadline - self.received_ns) // 20)
        return deadline < finish_ns + way_back


# MERGED: Fairness between callers: each gets one image computed before anyone gets the next.


_NEVER = 1 << 63


class Turns:
    """Ranks items as they come (start-time fair queueing with images of equal cost).

    A caller's images take successive turns, and one who comes new takes the next turn: whoever
    sends hundreds of images at once waits for them without anyone else waiting for them too,
    and is not overtaken for ever either. Within a turn the earliest deadline goes first, then
    who came first.
    """

    def __init__(self) -> None:
        self._now = 0
        self._arrivals = 0
        # Last turn, and images inside, of each caller that has any.
        self._last: dict[int, int] = {}
        self._inside: dict[int, int] = {}

    def enter(self, item: Item) -> None:
        """Sets the item's rank."""
        caller = item.request.caller
        turn = max(self._now, self._last.get(caller, 0)) + 1
        self._last[caller] = turn
        self._inside[caller] = self._inside.get(caller, 0) + 1
        self._arrivals += 1
        item.rank = (turn, item.request.deadline_ns or _NEVER, self._arrivals)

    def begin(self, item: Item) -> None:
        """It is this item's turn."""
        self._now = max(self._now, item.rank[0])

    def leave(self, item: Item) -> None:
        """The item is done with, one way or another."""
        caller = item.request.caller
        self._inside[caller] -= 1
        if not self._inside[caller]:
            del self._inside[caller], self._last[caller]


# MERGED: How long batches take, as measured: what would be too late need not be begun.


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
