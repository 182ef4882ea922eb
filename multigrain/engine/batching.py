"""Continuous batching without a timer: which images an engine decodes and computes next.

A batch starts the moment the network is idle and takes the images that are decoded by then, up to
the size beyond which larger batches gain nothing. An idle engine therefore adds no delay, and a
busy one fills its batches. Callers take turns (:class:`FairQueue`). Images that were canceled, or
can no longer meet their deadline by the latency measured so far, reach neither the decoder nor the
network.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.protocol import Harm, Submit
from multigrain.engine.runtimes.base import Runtime

Rank = tuple[int, int, int]
"""Orders items by round, deadline and arrival; the smallest goes first."""

ANSWER_NS = 100_000_000
"""Allowance for the answer to reach the caller: on a busy host it takes tens of milliseconds."""

ORDINARY_SECONDS = 0.1
"""CPU time of the most expensive image that an ordinary decoder process decodes, as estimated."""

ORDINARY_BYTES = 64 << 20
"""Memory that such an image takes while it is decoded."""

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


class Lane(Enum):
    """Where an image is decoded.

    ORDINARY: at once, by one of several decoder processes. LOW: by one more, which takes only CPU
    time that nothing else wants: expensive images, those of penalized clients, and those whose
    first attempt was ended.
    """

    ORDINARY = "ordinary"
    LOW = "low"


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
        rank: its place in the queue.
    """

    request: Submit
    data: bytes
    received_ns: int = field(default_factory=time.monotonic_ns)
    decode_ns: int = 0
    pixels: NDArray[np.uint8] | None = None
    tensor: NDArray[np.float32] | None = None
    stage: Stage = Stage.WAITING
    lane: Lane = Lane.ORDINARY
    attempts: int = 0
    harm: Harm = ""
    cancelled: bool = False
    rank: Rank = (0, 0, 0)

    def __post_init__(self) -> None:
        request = self.request
        expensive = (
            request.decode_seconds > ORDINARY_SECONDS or request.decode_bytes > ORDINARY_BYTES
        )
        if not request.tensor and (expensive or request.penalized):
            self.lane = Lane.LOW

    def __lt__(self, other: Item) -> bool:
        return self.rank < other.rank

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


@dataclass(frozen=True)
class Limits:
    """Limits of a batcher.

    Attributes:
        max_batch: images in a batch at most.
        decode_ahead: decoded images that may wait for the network. They are larger than the
            files they come from: enough to keep the network busy, no more.
        decoded_bytes: memory of those images; one image is always allowed.
        decode_bytes: memory that images take in the ordinary decoder processes together, as
            estimated; one image is always allowed.
    """

    max_batch: int
    decode_ahead: int
    decoded_bytes: int = 256 * 1024 * 1024
    decode_bytes: int = 256 * 1024 * 1024


class Batcher:
    """Queues images for the decoding threads and the computing thread. Thread-safe.

    Args:
        limits: of the queue and the batches.
        latencies: of each resolution that is served.
        on_drop: called, outside the lock, for each image that is dropped.
    """

    def __init__(
        self,
        limits: Limits,
        latencies: Mapping[int, BatchLatencyEstimator],
        on_drop: Callable[[Item, DropReason], None],
    ) -> None:
        self._limits = limits
        self._latencies = latencies
        self._on_drop = on_drop
        self._fair_queue = FairQueue()
        self._items: dict[int, Item] = {}
        # Heaps by rank.
        self._waiting: dict[Lane, list[Item]] = {lane: [] for lane in Lane}
        self._decoded: list[Item] = []
        self._decoding: list[Item] = []
        self._bytes = 0
        self._closed = False
        self._lock = threading.Lock()
        self._may_decode = {lane: threading.Condition(self._lock) for lane in Lane}
        self._may_compute = threading.Condition(self._lock)

    def submit(self, item: Item) -> None:
        """Queues an image."""
        with self._lock:
            self._items[item.request.id] = item
            self._fair_queue.add(item)
            self._wait_for_decoder(item)

    def cancel(self, item_id: int) -> None:
        """Drops an image that has not reached the network; an unknown id is a finished one."""
        with self._lock:
            item = self._items.get(item_id)
            if item is None:
                return
            item.cancelled = True
            if item.stage is Stage.WAITING:
                _remove(self._waiting[item.lane], item)
            elif item.stage is Stage.DECODED:
                _remove(self._decoded, item)
                self._bytes -= item.decoded_bytes
                self._notify_decoders()
            else:
                return
            self._forget(item)
        self._on_drop(item, DropReason.CANCELLED)

    def next_to_decode(self, lane: Lane = Lane.ORDINARY) -> Item | None:
        """Waits for an image, and for room behind the decoder; None when closed."""
        may_decode = self._may_decode[lane]
        while True:
            with may_decode:
                while not self._closed and not self._can_decode(lane):
                    may_decode.wait()
                if self._closed:
                    return None
                item, reason = self._take_to_decode(lane)
            if reason is None:
                return item
            self._on_drop(item, reason)

    def decoded(self, item: Item) -> None:
        """Queues a decoded image for the network."""
        with self._lock:
            self._decoding.remove(item)
            if not item.cancelled:
                item.stage = Stage.DECODED
                heapq.heappush(self._decoded, item)
                self._may_compute.notify()
                return
            self._bytes -= item.decoded_bytes
            self._forget(item)
            self._notify_decoders()
        self._on_drop(item, DropReason.CANCELLED)

    def decode_failed(self, item: Item) -> None:
        """Removes an image that could not be decoded; the caller answers it."""
        with self._lock:
            self._decoding.remove(item)
            self._bytes -= item.decoded_bytes
            self._forget(item)
            self._notify_decoders()

    def decode_later(self, item: Item) -> None:
        """Queues an image whose decoding was ended for another attempt, in the low lane."""
        with self._lock:
            self._decoding.remove(item)
            self._bytes -= item.decoded_bytes
            self._notify_decoders()
            if not item.cancelled:
                item.lane, item.stage = Lane.LOW, Stage.WAITING
                self._wait_for_decoder(item)
                return
            self._forget(item)
        self._on_drop(item, DropReason.CANCELLED)

    def next_batch(self) -> list[Item] | None:
        """Waits for a batch; None when closed.

        A batch has images of one resolution, ordered by rank; :meth:`done` must be called after
        it.
        """
        while True:
            with self._may_compute:
                while not (self._closed or self._can_compute()):
                    self._may_compute.wait()
                if self._closed:
                    return None
                batch, late = self._take_batch()
            for dropped, why in late:
                self._on_drop(dropped, why)
            if batch:
                return batch

    def done(self, batch: list[Item], seconds: float) -> list[Item]:
        """Records a computed batch and its latency.

        Returns:
            Its images that were canceled while they were computed.
        """
        with self._lock:
            self._latencies[batch[0].request.resolution].record(len(batch), seconds)
            for item in batch:
                self._forget(item)
            return [item for item in batch if item.cancelled]

    def close(self) -> None:
        """Ends all waiting threads."""
        with self._lock:
            self._closed = True
            self._notify_decoders()
            self._may_compute.notify_all()

    def _forget(self, item: Item) -> None:
        del self._items[item.request.id]
        self._fair_queue.remove(item)

    def _wait_for_decoder(self, item: Item) -> None:
        heapq.heappush(self._waiting[item.lane], item)
        self._may_decode[item.lane].notify()

    def _notify_decoders(self) -> None:
        for condition in self._may_decode.values():
            condition.notify_all()

    def _can_decode(self, lane: Lane) -> bool:
        waiting = self._waiting[lane]
        if not waiting:
            return False
        beside = [item for item in self._decoding if item.lane is lane]
        if not beside and not self._decoded:
            return True
        first = waiting[0]
        decode_bytes = sum(item.request.decode_bytes for item in [*beside, first])
        return (
            len(self._decoded) + len(self._decoding) < self._limits.decode_ahead
            and self._bytes + first.decoded_bytes <= self._limits.decoded_bytes
            and (not beside or decode_bytes <= self._limits.decode_bytes)
        )

    def _can_compute(self) -> bool:
        return bool(self._decoded)

    def _take_to_decode(self, lane: Lane) -> tuple[Item, DropReason | None]:
        """The first waiting image, in stage DECODING; or removed, with the reason."""
        item = heapq.heappop(self._waiting[lane])
        latency = self._latencies[item.request.resolution]
        alone = latency.seconds(1)
        if item.is_late(time.monotonic_ns() + self._wait_and_compute_ns(item)):
            self._forget(item)
            latency.decay_confidence()
            return item, self._drop_reason(item, alone)
        item.stage = Stage.DECODING
        self._decoding.append(item)
        self._bytes += item.decoded_bytes
        return item, None

    def _drop_reason(self, item: Item, alone: float) -> DropReason:
        """Why an image is late: its deadline was too near from the start, or the queue too long.

        Args:
            item: the image.
            alone: seconds that it takes by itself, by the estimate that found it late: later ones
                are shorter, because each dropped image lowers the confidence.
        """
        passed = item.request.deadline_ns <= time.monotonic_ns()
        hopeless = passed or item.is_late(item.received_ns + int(1e9 * alone))
        return DropReason.DEADLINE if hopeless else DropReason.OVERLOADED

    def _wait_and_compute_ns(self, item: Item) -> int:
        """Nanoseconds until a waiting image can be done: images ahead of it are computed first."""
        latency = self._latencies[item.request.resolution]
        ahead = sum(other < item for queue in (self._decoded, self._decoding) for other in queue)
        batches = ahead // latency.best_batch
        return int(1e9 * (batches * latency.seconds(latency.best_batch) + latency.seconds(1)))

    def _take_batch(self) -> tuple[list[Item], list[tuple[Item, DropReason]]]:
        """Removes the next batch from the decoded images, and the late images before it."""
        first = self._decoded[0]
        resolution = first.request.resolution
        latency = self._latencies[resolution]
        size = self._batch_limit(latency)
        finish = time.monotonic_ns() + int(1e9 * latency.seconds(min(size, len(self._decoded))))
        items: list[Item] = []
        late: list[tuple[Item, DropReason]] = []
        alone = latency.seconds(1)
        others: list[Item] = []
        while self._decoded and len(items) < size:
            item = heapq.heappop(self._decoded)
            if item.request.resolution != resolution:
                others.append(item)
                continue
            self._bytes -= item.decoded_bytes
            if item.is_late(finish):
                self._forget(item)
                latency.decay_confidence()
                late.append((item, self._drop_reason(item, alone)))
            else:
                item.stage = Stage.COMPUTING
                self._fair_queue.start(item)
                items.append(item)
        for item in others:
            heapq.heappush(self._decoded, item)
        self._notify_decoders()
        return items, late

    def _batch_limit(self, latency: BatchLatencyEstimator) -> int:
        """Images that the next batch may have."""
        return min(latency.best_batch, self._limits.max_batch)


def _remove(heap: list[Item], item: Item) -> None:
    heap.remove(item)
    heapq.heapify(heap)
