"""Continuous batching without a timer: which images an engine decodes and computes next.

A batch starts the moment the network is idle and takes the images that are decoded by then, up to
the size beyond which larger batches gain nothing. An idle engine therefore adds no delay, and a
busy one fills its batches. Clients and their callers are served in rotation
(:mod:`multigrain.engine.fair_queue`). Images that were canceled, or can no longer meet their
deadline by the latency measured so far, reach neither the decoder nor the network.

What is decided depends on the arguments and on what was decided before, not on threads or a clock:
:mod:`multigrain.engine.batcher` has those, and ``tests/simulation`` runs hours of it in seconds.
"""

from __future__ import annotations

import time
from bisect import bisect, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.fair_queue import CallerRounds, FairQueue, Rank, images_before
from multigrain.engine.lanes import Lane, lane_of
from multigrain.engine.protocol import Harm, Submit
from multigrain.engine.runtimes.base import Runtime
from multigrain.engine.shared_images import LargeImage

ANSWER_NS = 100_000_000
"""Allowance for the answer to reach the caller: on a busy host it takes tens of milliseconds."""

_ANSWER_SHARE = 20  # of a short deadline, at most a twentieth is reserved for the answer
_NO_DEADLINE = 1 << 63
# So long after images of different clients the next ones are expected to be of different clients.
_SHARED_NS: Final = 5_000_000_000
# So many times the time of one image a short batch may take.
_SHORT: Final = 1.4
_KEPT_MEASUREMENTS = 3
# Part of a difference by which a batch corrects how sizes compare.
_CORRECTION: Final = 0.1
# Efficiency that a batch keeps when it is made smaller so that its first image is in time.
_EFFICIENT: Final = 0.75
# Efficiency of short batches from which on no larger ones are made for several clients.
_AS_EFFICIENT: Final = 0.95
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
        lane: where it is decoded.
        attempts: how often its decoding has been ended without a result.
        harm: see :class:`multigrain.engine.protocol.Result`.
        cancelled: the caller no longer waits.
        compute_units: estimated milliseconds to compute it.
        rank: its place among the images of its client.
    """

    request: Submit
    data: bytes | LargeImage
    received_ns: int = field(default_factory=time.monotonic_ns)
    decode_ns: int = 0
    pixels: NDArray[np.uint8] | None = None
    tensor: NDArray[np.float32] | None = None
    stage: Stage = Stage.WAITING
    lane: Lane = Lane.ORDINARY
    attempts: int = 0
    harm: Harm = ""
    cancelled: bool = False
    compute_units: int = 0
    rank: Rank = (0, 0, 0)

    def __post_init__(self) -> None:
        request = self.request
        # Preprocessed ones need no decoding.
        self.lane = (
            Lane.ORDINARY
            if request.tensor
            else lane_of(request.decode_seconds, request.decode_bytes, penalized=request.penalized)
        )

    def __lt__(self, other: Item) -> bool:
        return self.rank < other.rank

    @property
    def client(self) -> int:
        return self.request.client

    @property
    def caller(self) -> int:
        return self.request.caller

    @property
    def resolution(self) -> int:
        return self.request.resolution

    @property
    def units(self) -> int:
        """Estimated milliseconds to decode and to compute it, at least 1."""
        return max(1, round(1000 * self.request.decode_seconds) + self.compute_units)

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for it: not canceled, and before its deadline."""
        deadline = self.request.deadline_ns
        return not self.cancelled and (not deadline or time.monotonic_ns() < deadline)

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


class BatchLatencyEstimator:
    """Seconds that a batch takes, by its size.

    How sizes compare is measured before the first request and changes little. How fast the engine
    is may change at once, with what else its machine does: every batch tells it for all sizes.

    Args:
        best_batch: the batch size beyond which larger batches gain no throughput.

    Attributes:
        short_batch: images in a batch that takes little longer than one image, at most the best
            size. Measured before the first request: later the sizes are not measured side by side.
    """

    def __init__(self, best_batch: int) -> None:
        self.best_batch = best_batch
        self.short_batch = best_batch
        # Sizes in order, and the seconds of each at the speed of the first measurement.
        self._sizes: list[int] = []
        self._usual: dict[int, float] = {}
        # What the last batches took, over that.
        self._slowdowns: deque[float] = deque(maxlen=_KEPT_MEASUREMENTS)
        self._slowdown = 1.0
        self._confidence = 1.0

    @classmethod
    def measure(cls, runtime: Runtime, resolution: int) -> BatchLatencyEstimator:
        """Times the smallest and the best batch of a loaded network.

        Each size twice, and a single image three times before each of them: that is short, and if
        other programs had slowed down all of these, batches for several clients would be long.
        """
        estimator = cls(runtime.best_batch)
        least: dict[int, float] = {}
        for size in 2 * (1, 1, 1, runtime.best_batch):
            images = list(np.zeros((size, resolution, resolution, 3), np.uint8))
            start = time.perf_counter()
            runtime.run_pixels(images)
            seconds = time.perf_counter() - start
            least[size] = min(seconds, least.get(size, seconds))
        for size, seconds in least.items():
            estimator.record(size, seconds)
        estimator.short_batch = short_batch(
            least[1], estimator.best_batch, least[estimator.best_batch]
        )
        return estimator

    def record(self, size: int, seconds: float) -> None:
        """Adds a measurement and restores full confidence."""
        self._confidence = 1.0
        usual = self._usual_seconds(size)
        if not self._sizes or not self._sizes[0] <= size <= self._sizes[-1]:
            usual = seconds / self._slowdown
        elif usual:
            self._slowdowns.append(seconds / usual)
            # One batch that other programs slowed down must not cause images to be refused that
            # could be answered in time.
            self._slowdown = median(self._slowdowns)
            usual += _CORRECTION * (seconds / self._slowdown - usual)
        if size not in self._usual:
            insort(self._sizes, size)
        self._usual[size] = usual

    def seconds(self, size: int) -> float:
        """Expected seconds of a batch of ``size``, or of the largest size that was measured.

        Returns:
            0 while nothing was measured.
        """
        return self._confidence * self._slowdown * self._usual_seconds(size)

    def _usual_seconds(self, size: int) -> float:
        """Between the sizes that were measured, on a line."""
        usual = self._usual.get(size)
        if usual is not None:
            return usual
        place = bisect(self._sizes, size)
        if place == 0:
            return 0.0
        below = self._sizes[place - 1]
        if place == len(self._sizes):
            return self._usual[below]
        above = self._sizes[place]
        part = (size - below) / (above - below)
        return (1 - part) * self._usual[below] + part * self._usual[above]

    def efficiency(self, size: int) -> float:
        """Throughput in batches of ``size``, over that in batches of the best size."""
        seconds = self.seconds(size)
        return size * self.seconds_each / seconds if seconds else 1.0

    @property
    def seconds_each(self) -> float:
        """Expected seconds for one image of a batch of the best size; 0 = unknown."""
        return self.seconds(self.best_batch) / self.best_batch

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


def short_batch(one: float, best_batch: int, best: float) -> int:
    """Images in a batch that takes little longer than one image, at most the best size.

    Args:
        one: seconds of one image.
        best_batch: the best size.
        best: seconds of a batch of that size.
    """
    if best <= _SHORT * one:
        return best_batch
    return min(best_batch, 1 + int((_SHORT - 1) * one * (best_batch - 1) / (best - one)))


@dataclass(frozen=True)
class Limits:
    """Limits of a schedule.

    Attributes:
        max_batch: images in a batch at most.
        decode_ahead: decoded images that may wait for the network. They are larger than the
            files they come from: enough to keep the network busy, no more.
        decoded_bytes: memory of those images; one image is always allowed.
        decode_bytes: memory that images take together while they are decoded, as estimated, in
            each lane; one image is always allowed.
    """

    max_batch: int
    decode_ahead: int
    decoded_bytes: int = 256 * 1024 * 1024
    decode_bytes: int = 256 * 1024 * 1024


class Schedule:
    """The images in an engine, and which of them it decodes and computes next.

    Not thread-safe. Times are on CLOCK_MONOTONIC, in nanoseconds.

    Args:
        limits: of the queue and the batches.
        latencies: of each resolution that is served.
    """

    def __init__(self, limits: Limits, latencies: Mapping[int, BatchLatencyEstimator]) -> None:
        self._limits = limits
        self._latencies = latencies
        self._rounds = CallerRounds()
        self._newest_client = 0
        # When an image came beside images of other clients, or after one of another client.
        self._shared_ns = -_SHARED_NS
        self._items: dict[int, Item] = {}
        self._waiting = {lane: FairQueue[Item](lambda item: item.units) for lane in Lane}
        self._decoded = FairQueue[Item](lambda item: max(1, item.compute_units))
        self._decoding: list[Item] = []
        self._bytes = 0

    def submit(self, item: Item, now_ns: int) -> None:
        """Queues an image."""
        self._items[item.request.id] = item
        item.compute_units = round(1000 * self._latencies[item.resolution].seconds_each)
        self._rounds.add(item, item.request.deadline_ns or _NO_DEADLINE)
        if self._rounds.clients > 1 or item.client != (self._newest_client or item.client):
            self._shared_ns = now_ns
        self._newest_client = item.client
        self._waiting[item.lane].push(item)

    def cancel(self, item_id: int) -> Item | None:
        """Notes that nobody waits for an image; an unknown id is a finished one.

        Returns:
            The image if it was removed; None if it is decoded or computed now.
        """
        item = self._items.get(item_id)
        if item is None:
            return None
        item.cancelled = True
        if item.stage is Stage.WAITING:
            self._waiting[item.lane].remove(item)
        elif item.stage is Stage.DECODED:
            self._decoded.remove(item)
            self._bytes -= item.decoded_bytes
        else:
            return None
        self._forget(item)
        return item

    def can_decode(self, lane: Lane) -> bool:
        """Whether there is an image for the lane, and room behind the decoder."""
        first = self._waiting[lane].first()
        if first is None:
            return False
        beside = [item.request.decode_bytes for item in self._decoding if item.lane is lane]
        if not beside and not self._decoded:
            return True
        return (
            len(self._decoded) + len(self._decoding) < self._limits.decode_ahead
            and self._bytes + first.decoded_bytes <= self._limits.decoded_bytes
            and (
                not beside or sum(beside) + first.request.decode_bytes <= self._limits.decode_bytes
            )
        )

    def take_to_decode(self, lane: Lane, now_ns: int) -> tuple[Item, DropReason | None]:
        """The first waiting image, in stage DECODING; or removed, with the reason."""
        item = self._waiting[lane].pop()
        assert item is not None
        latency = self._latencies[item.request.resolution]
        alone = latency.seconds(1)
        # Nearly always it is in time even behind all others: to count who goes first takes longer.
        most = len(self._decoded) + len(self._decoding)
        if item.is_late(now_ns + self._finish_ns(item, most)) and item.is_late(
            now_ns + self._finish_ns(item, self._ahead(item))
        ):
            self._forget(item)
            latency.decay_confidence()
            return item, _drop_reason(item, alone, now_ns)
        item.stage = Stage.DECODING
        self._decoding.append(item)
        self._bytes += item.decoded_bytes
        return item, None

    def decoded(self, item: Item) -> bool:
        """Queues a decoded image for the network; False if it was canceled and is removed."""
        self._decoding.remove(item)
        if not item.cancelled:
            item.stage = Stage.DECODED
            self._decoded.push(item)
            return True
        self._bytes -= item.decoded_bytes
        self._forget(item)
        return False

    def decode_failed(self, item: Item) -> None:
        """Removes an image that could not be decoded."""
        self._decoding.remove(item)
        self._bytes -= item.decoded_bytes
        self._forget(item)

    def decode_later(self, item: Item) -> bool:
        """Queues an image whose decoding was ended for another attempt, in the slow lane.

        Returns:
            False if it was canceled and is removed.
        """
        self._decoding.remove(item)
        self._bytes -= item.decoded_bytes
        if item.cancelled:
            self._forget(item)
            return False
        item.lane, item.stage = Lane.SLOW, Stage.WAITING
        self._waiting[item.lane].push(item)
        return True

    def can_compute(self) -> bool:
        """Whether an image is decoded."""
        return len(self._decoded) > 0

    def take_batch(self, now_ns: int) -> tuple[list[Item], list[tuple[Item, DropReason]]]:
        """Removes the next batch from the decoded images, and the late images before it.

        The batch, which may be empty, has images of one resolution, ordered by rank;
        :meth:`done` must be called after it.
        """
        first = self._decoded.first()
        assert first is not None
        resolution = first.request.resolution
        latency = self._latencies[resolution]
        size = self._batch_limit(resolution, now_ns)
        size = min(size, len(self._decoded))
        while (
            size > 1
            and first.is_late(now_ns + int(1e9 * latency.seconds(size)))
            and latency.efficiency(size - 1) >= _EFFICIENT
        ):
            size -= 1
        finish = now_ns + int(1e9 * latency.seconds(size))
        items: list[Item] = []
        late: list[tuple[Item, DropReason]] = []
        alone = latency.seconds(1)
        while len(items) < size and (item := self._decoded.pop(resolution)) is not None:
            self._bytes -= item.decoded_bytes
            if item.is_late(finish):
                self._forget(item)
                latency.decay_confidence()
                late.append((item, _drop_reason(item, alone, now_ns)))
            else:
                item.stage = Stage.COMPUTING
                self._rounds.start(item)
                items.append(item)
        return items, late

    def done(self, batch: list[Item], seconds: float) -> list[Item]:
        """Records a computed batch and its latency.

        Returns:
            Its images that were canceled while they were computed.
        """
        self._latencies[batch[0].request.resolution].record(len(batch), seconds)
        for item in batch:
            self._forget(item)
        return [item for item in batch if item.cancelled]

    def _forget(self, item: Item) -> None:
        del self._items[item.request.id]
        self._rounds.remove(item)
        # An idle decoder thread refers to its last item until it gets another.
        item.data = b""

    def _ahead(self, item: Item) -> int:
        """How many images are computed before a waiting one."""
        return images_before(item, (*self._decoded, *self._decoding))

    def _finish_ns(self, item: Item, ahead: int) -> int:
        """Nanoseconds until a waiting image can be done, behind so many that are computed first."""
        latency = self._latencies[item.request.resolution]
        batches = ahead // latency.best_batch
        return int(1e9 * (batches * latency.seconds(latency.best_batch) + latency.seconds(1)))

    def _batch_limit(self, resolution: int, now_ns: int) -> int:
        """Images that the next batch may have.

        While several clients send images, a batch has no more of each than take little longer than
        one image: whoever sends the next image waits for this batch, and then for the others in its
        own. Where a large batch takes hardly longer, as on accelerators, that is no limit. Where
        small batches are as fast per image as large ones, as on old CPUs, a batch is short in all:
        who is served in turns waits less than who is served together with others.
        """
        latency = self._latencies[resolution]
        most = min(latency.best_batch, self._limits.max_batch)
        if now_ns - self._shared_ns > _SHARED_NS:
            return most
        short = latency.short_batch
        if latency.seconds(short) and latency.efficiency(short) >= _AS_EFFICIENT:
            return min(most, short)
        return min(most, self._decoded.count(resolution, each=short))


def _drop_reason(item: Item, alone: float, now_ns: int) -> DropReason:
    """Why an image is late: its deadline was too near from the start, or the queue too long.

    Args:
        item: the image.
        alone: seconds that it takes by itself, by the estimate that found it late: later ones
            are shorter, because each dropped image lowers the confidence.
        now_ns: on CLOCK_MONOTONIC.
    """
    passed = item.request.deadline_ns <= now_ns
    hopeless = passed or item.is_late(item.received_ns + int(1e9 * alone))
    return DropReason.DEADLINE if hopeless else DropReason.OVERLOADED
