"""What decides which image an engine computes next: deadlines, fairness, measured latency."""

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

Rank = tuple[int, int, int]
"""Orders items by round, deadline and arrival; the smallest goes first."""

ANSWER_NS = 100_000_000
"""Allowance for the answer to reach the caller: on a busy host it takes tens of milliseconds."""

_ANSWER_SHARE = 20  # of a short deadline, at most a twentieth is reserved for the answer
_NO_DEADLINE = 1 << 63
_KEPT_MEASUREMENTS = 8
_CONFIDENCE_DECAY = 0.98


class Stage(Enum):
    """How far an image has come."""

    WAITING = "waiting"
    DECODING = "decoding"
    DECODED = "decoded"
    COMPUTING = "computing"


class DropReason(Enum):
    """Why an image is not computed.

    DEADLINE: it was too near for any engine like this one. OVERLOADED: there was too much before
    the image in the queue.
    """

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    OVERLOADED = "overloaded"


@dataclass(slots=True, eq=False)
class Item:
    """An image on its way through an engine.

    Attributes:
        request: what to compute.
        data: the encoded or preprocessed image; empty once it is decoded.
        received_ns: arrival, on CLOCK_MONOTONIC.
        decode_ns: duration of decoding.
        pixels: uint8 (S, S, 3) once it is decoded.
        tensor: instead, float32 (3, S, S), if the image was preprocessed by the caller.
        stage: how far it has come.
        cancelled: the caller no longer waits.
        rank: its place in the queue.
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
        """Memory that the decoded image takes."""
        return (12 if self.request.tensor else 3) * self.request.resolution**2

    def is_late(self, finish_ns: int) -> bool:
        """Whether an answer that is ready at ``finish_ns`` would miss the deadline.

        Args:
            finish_ns: on CLOCK_MONOTONIC.
        """
        deadline = self.request.deadline_ns
        if not deadline:
            return False
        allowance = min(ANSWER_NS, (deadline - self.received_ns) // _ANSWER_SHARE)
        return deadline < finish_ns + allowance


class FairQueue:
    """Ranks images so that callers are served in rotation, one image each.

    This is start-time fair queueing with images of equal cost: a caller's images take successive
    rounds, and a new caller joins in the next round. A caller that sends hundreds of images at
    once does not delay the others, and is not starved by them. Within a round the earliest
    deadline goes first, then the earliest arrival.
    """

    def __init__(self) -> None:
        self._round = 0
        self._arrivals = 0
        # Of each caller with images in the engine: its last round, and how many it has.
        self._last_round: dict[int, int] = {}
        self._count: dict[int, int] = {}

    def add(self, item: Item) -> None:
        """Sets the item's rank."""
        caller = item.request.caller
        turn = max(self._round, self._last_round.get(caller, 0)) + 1
        self._last_round[caller] = turn
        self._count[caller] = self._count.get(caller, 0) + 1
        self._arrivals += 1
        item.rank = (turn, item.request.deadline_ns or _NO_DEADLINE, self._arrivals)

    def start(self, item: Item) -> None:
        """The item is computed: its round begins."""
        self._round = max(self._round, item.rank[0])

    def remove(self, item: Item) -> None:
        """The item is answered, or dropped."""
        caller = item.request.caller
        self._count[caller] -= 1
        if not self._count[caller]:
            del self._count[caller], self._last_round[caller]


class BatchLatencyEstimator:
    """Seconds that a batch takes, by its size. Guarded by the batcher's lock.

    Args:
        best_batch: the batch size beyond which larger batches gain no throughput.
    """

    def __init__(self, best_batch: int) -> None:
        self.best_batch = best_batch
        self._measured: dict[int, deque[float]] = {}
        self._confidence = 1.0

    @classmethod
    def measure(cls, runtime: Runtime, resolution: int) -> BatchLatencyEstimator:
        """Times the smallest and the best batch of a loaded network, twice each."""
        estimator = cls(runtime.best_batch)
        for size in sorted({1, runtime.best_batch}):
            images = list(np.zeros((size, resolution, resolution, 3), np.uint8))
            for _ in range(2):
                start = time.perf_counter()
                runtime.run_pixels(images)
                estimator.record(size, time.perf_counter() - start)
        return estimator

    def record(self, size: int, seconds: float) -> None:
        """Adds a measurement and restores full confidence."""
        self._measured.setdefault(size, deque(maxlen=_KEPT_MEASUREMENTS)).append(seconds)
        self._confidence = 1.0

    def seconds(self, size: int) -> float:
        """Expected seconds of a batch of ``size``, or of the next smaller size that was measured.

        The median of the last measurements: one batch that other programs slowed down must not
        cause images to be refused that could be answered in time.

        Returns:
            0 while nothing was measured.
        """
        known = [other for other in self._measured if other <= size]
        return self._confidence * median(self._measured[max(known)]) if known else 0.0

    @property
    def images_per_second(self) -> float:
        """Throughput in batches of the best size; 0 while nothing was measured."""
        seconds = self.seconds(self.best_batch)
        return self.best_batch / seconds if seconds else 0.0

    def decay_confidence(self) -> None:
        """Lowers the estimate after an image was dropped because of it.

        Dropped images are not measured: without the decay an engine that was slow once could
        refuse images forever.
        """
        self._confidence *= _CONFIDENCE_DECAY
