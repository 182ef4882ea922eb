"""Continuous batching without a timer.

A batch starts the moment the network is idle and takes the images that are decoded by then, up to
the size beyond which larger batches gain nothing. An idle engine therefore adds no delay, and a
busy one fills its batches. Images that were canceled, or can no longer meet their deadline, reach
neither the decoder nor the network.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from multigrain.engine.scheduling import BatchLatencyEstimator, DropReason, FairQueue, Item, Stage


@dataclass(frozen=True)
class Limits:
    """Limits of a batcher.

    Attributes:
        max_batch: images in a batch at most.
        decode_ahead: decoded images that may wait for the network. They are larger than the
            files they come from: enough to keep the network busy, no more.
        decoded_bytes: memory of those images; one image is always allowed.
    """

    max_batch: int
    decode_ahead: int
    decoded_bytes: int = 256 * 1024 * 1024


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
        self._waiting: list[Item] = []
        self._decoded: list[Item] = []
        self._decoding: list[Item] = []
        self._bytes = 0
        self._idle = False
        self._closed = False
        self._lock = threading.Lock()
        self._may_decode = threading.Condition(self._lock)
        self._may_compute = threading.Condition(self._lock)

    def submit(self, item: Item) -> None:
        """Queues an image."""
        with self._lock:
            was_empty = not self._items
            self._items[item.request.id] = item
            self._fair_queue.add(item)
            heapq.heappush(self._waiting, item)
            if was_empty and self._idle:
                # The idle computing thread decodes it, which saves a switch of threads.
                self._may_compute.notify()
            else:
                self._may_decode.notify()

    def cancel(self, item_id: int) -> None:
        """Drops an image that has not reached the network; an unknown id is a finished one."""
        with self._lock:
            item = self._items.get(item_id)
            if item is None:
                return
            item.cancelled = True
            if item.stage is Stage.WAITING:
                _remove(self._waiting, item)
            elif item.stage is Stage.DECODED:
                _remove(self._decoded, item)
                self._bytes -= item.decoded_bytes
                self._may_decode.notify()
            else:
                return
            self._forget(item)
        self._on_drop(item, DropReason.CANCELLED)

    def next_to_decode(self) -> Item | None:
        """Waits for an image, and for room behind the decoder; None when closed."""
        while True:
            with self._may_decode:
                while not self._closed and not self._can_decode():
                    self._may_decode.wait()
                if self._closed:
                    return None
                item = self._take_to_decode()
            if item.stage is Stage.DECODING:
                return item
            self._on_drop(item, self._drop_reason(item))

    def decoded(self, item: Item, *, inline: bool = False) -> None:
        """Queues a decoded image for the network.

        Args:
            item: decoded by the caller.
            inline: decoded by the computing thread, which needs no notification.
        """
        with self._lock:
            self._decoding.remove(item)
            if not item.cancelled:
                item.stage = Stage.DECODED
                heapq.heappush(self._decoded, item)
                if not inline:
                    self._may_compute.notify()
                return
            self._bytes -= item.decoded_bytes
            self._forget(item)
            self._may_decode.notify()
        self._on_drop(item, DropReason.CANCELLED)

    def decode_failed(self, item: Item) -> None:
        """Removes an image that could not be decoded; the caller answers it."""
        with self._lock:
            self._decoding.remove(item)
            self._bytes -= item.decoded_bytes
            self._forget(item)
            self._may_decode.notify()

    def next_work(self) -> list[Item] | Item | None:
        """Waits for a batch or, while the network is idle, for an image to decode inline.

        A batch has images of one resolution, ordered by rank; :meth:`done` must be called after
        it.

        Returns:
            A batch, an image to decode, or None when closed.
        """
        while True:
            with self._may_compute:
                self._idle = True
                while not (self._closed or self._can_compute() or self._can_decode_inline()):
                    self._may_compute.wait()
                self._idle = False
                if self._closed:
                    return None
                if not self._can_compute():
                    item = self._take_to_decode()
                    batch: list[Item] = []
                    late = [] if item.stage is Stage.DECODING else [item]
                else:
                    item = None
                    batch, late = self._take_batch()
            for dropped in late:
                self._on_drop(dropped, self._drop_reason(dropped))
            if batch:
                return batch
            if item is not None and not late:
                return item

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
            self._may_decode.notify_all()
            self._may_compute.notify_all()

    def _forget(self, item: Item) -> None:
        del self._items[item.request.id]
        self._fair_queue.remove(item)

    def _can_decode(self) -> bool:
        if not self._waiting:
            return False
        ahead = len(self._decoded) + len(self._decoding)
        next_bytes = self._bytes + self._waiting[0].decoded_bytes
        return not ahead or (
            ahead < self._limits.decode_ahead and next_bytes <= self._limits.decoded_bytes
        )

    def _can_compute(self) -> bool:
        return bool(self._decoded)

    def _can_decode_inline(self) -> bool:
        return self._can_decode() and not self._decoded

    def _take_to_decode(self) -> Item:
        """The first waiting image: in stage DECODING, or removed because it would be late."""
        item = heapq.heappop(self._waiting)
        if item.is_late(time.monotonic_ns() + self._wait_and_compute_ns(item)):
            self._forget(item)
            self._latencies[item.request.resolution].decay_confidence()
            return item
        item.stage = Stage.DECODING
        self._decoding.append(item)
        self._bytes += item.decoded_bytes
        return item

    def _drop_reason(self, item: Item) -> DropReason:
        """Why an image is late: its deadline was too near from the start, or the queue too long."""
        alone_ns = int(1e9 * self._latencies[item.request.resolution].seconds(1))
        passed = item.request.deadline_ns <= time.monotonic_ns()
        hopeless = passed or item.is_late(item.received_ns + alone_ns)
        return DropReason.DEADLINE if hopeless else DropReason.OVERLOADED

    def _wait_and_compute_ns(self, item: Item) -> int:
        """Nanoseconds until a waiting image can be done: images ahead of it are computed first."""
        latency = self._latencies[item.request.resolution]
        ahead = sum(other < item for queue in (self._decoded, self._decoding) for other in queue)
        batches = ahead // latency.best_batch
        return int(1e9 * (batches * latency.seconds(latency.best_batch) + latency.seconds(1)))

    def _take_batch(self) -> tuple[list[Item], list[Item]]:
        """Removes the next batch from the decoded images, and the late images before it."""
        first = self._decoded[0]
        resolution = first.request.resolution
        latency = self._latencies[resolution]
        size = self._batch_limit(latency)
        finish = time.monotonic_ns() + int(1e9 * latency.seconds(min(size, len(self._decoded))))
        items: list[Item] = []
        late: list[Item] = []
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
                late.append(item)
            else:
                item.stage = Stage.COMPUTING
                self._fair_queue.start(item)
                items.append(item)
        for item in others:
            heapq.heappush(self._decoded, item)
        self._may_decode.notify_all()
        return items, late

    def _batch_limit(self, latency: BatchLatencyEstimator) -> int:
        """Images that the next batch may have."""
        return min(latency.best_batch, self._limits.max_batch)


def _remove(heap: list[Item], item: Item) -> None:
    heap.remove(item)
    heapq.heapify(heap)
