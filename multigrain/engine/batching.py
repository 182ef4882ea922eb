"""The queue between images and the network: continuous batching without a timer.

A batch leaves the moment the network is free and takes what is decoded by then, up to the size
beyond which a larger one gains nothing. An idle engine therefore adds no delay, and a busy one
fills its batches by itself. Work that nobody waits for any more, or that can no longer be done
in time, reaches neither the decoder nor the network.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from multigrain.engine.scheduling import Drop, Item, Pace, Stage, Turns


@dataclass(frozen=True)
class Limits:
    """What a batcher may hold and hand out.

    Attributes:
        max_batch: images in a batch at most.
        decode_ahead: decoded images that may wait, beyond a held batch. They are larger than
            the files they come from: enough to keep the network busy, no more.
        decoded_bytes: of those images; one is always allowed.
    """

    max_batch: int
    decode_ahead: int
    decoded_bytes: int = 256 * 1024 * 1024


class Batcher:
    """Thread-safe: one reader submits, some threads decode, one computes.

    Args:
        limits: see there.
        paces: of each resolution that is served.
        on_drop: called, outside the lock, for each image that is dropped.
    """

    def __init__(
        self, limits: Limits, paces: Mapping[int, Pace], on_drop: Callable[[Item, Drop], None]
    ) -> None:
        self._limits = limits
        self._paces = paces
        self._on_drop = on_drop
        self._turns = Turns()
        self._items: dict[int, Item] = {}
        # Heaps by rank.
        self._waiting: list[Item] = []
        self._decoded: list[Item] = []
        self._decoding: list[Item] = []
        self._bytes = 0
        self._idle = False
        self._hold = 0
        self._held = 0
        self._closed = False
        lock = threading.Lock()
        self._may_decode = threading.Condition(lock)
        self._may_compute = threading.Condition(lock)
        self._lock = lock

    def submit(self, item: Item) -> None:
        with self._lock:
            lonely = not self._items
            self._items[item.request.id] = item
            self._turns.enter(item)
            heapq.heappush(self._waiting, item)
            if lonely and self._idle:
                # The idle network's thread decodes by itself, which saves a change of threads.
                self._may_compute.notify()
            else:
                self._may_decode.notify()

    def cancel(self, item_id: int) -> None:
        """Drops the image if it has not reached the network; unknown ids are finished ones."""
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
        self._on_drop(item, Drop.CANCELLED)

    def hold(self, items: int) -> None:
        """Keeps batches back until ``items`` are decoded, once; 0 lets go at once."""
        with self._lock:
            self._hold = items
            self._may_compute.notify_all()
            self._may_decode.notify_all()

    def next_to_decode(self) -> Item | None:
        """Waits for an image and for room behind the decoder; None when closed."""
        while True:
            with self._may_decode:
                while not self._closed and not self._can_decode():
                    self._may_decode.wait()
                if self._closed:
                    return None
                item = self._take_to_decode()
            if item.stage is Stage.DECODING:
                return item
            self._on_drop(item, self._reason(item))

    def decoded(self, item: Item, *, by_computing: bool = False) -> None:
        """Hands over a decoded image; the computing thread comes back for its own by itself."""
        with self._lock:
            self._decoding.remove(item)
            if not item.cancelled:
                item.stage = Stage.DECODED
                heapq.heappush(self._decoded, item)
                if not by_computing:
                    self._may_compute.notify()
                return
            self._bytes -= item.decoded_bytes
            self._forget(item)
            self._may_decode.notify()
        self._on_drop(item, Drop.CANCELLED)

    def failed(self, item: Item) -> None:
        """Forgets an image that could not be decoded; the caller answers it."""
        with self._lock:
            self._decoding.remove(item)
            self._bytes -= item.decoded_bytes
            self._forget(item)
            self._may_decode.notify()

    def next_work(self) -> list[Item] | Item | None:
        """Waits for a batch or, with nothing to compute, an image to decode; None when closed.

        A batch holds images of one resolution, in the order of their ranks. After it,
        :meth:`done` must be called.
        """
        while True:
            with self._may_compute:
                self._idle = True
                while not (self._closed or self._can_compute() or self._computing_can_decode()):
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
                self._on_drop(dropped, self._reason(dropped))
            if batch:
                return batch
            if item is not None and not late:
                return item

    def done(self, batch: list[Item], seconds: float) -> list[Item]:
        """The batch took so long; returns its images for whose answer nobody waits any more."""
        with self._lock:
            self._paces[batch[0].request.resolution].measured(len(batch), seconds)
            for item in batch:
                self._forget(item)
            return [item for item in batch if item.cancelled]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._may_decode.notify_all()
            self._may_compute.notify_all()

    def _forget(self, item: Item) -> None:
        del self._items[item.request.id]
        self._turns.leave(item)

    def _can_decode(self) -> bool:
        if not self._waiting:
            return False
        ahead = len(self._decoded) + len(self._decoding)
        if ahead < self._hold:
            return True
        next_bytes = self._bytes + self._waiting[0].decoded_bytes
        return not ahead or (
            ahead < self._limits.decode_ahead and next_bytes <= self._limits.decoded_bytes
        )

    def _can_compute(self) -> bool:
        return bool(self._decoded) and len(self._decoded) >= self._hold

    def _computing_can_decode(self) -> bool:
        # Only what no decoder has begun to fetch for it.
        return self._can_decode() and not self._decoded

    def _take_to_decode(self) -> Item:
        """The first that waits: in stage DECODING, or forgotten because it would be late."""
        item = heapq.heappop(self._waiting)
        if item.late(time.monotonic_ns() + self._soonest_ns(item)):
            self._forget(item)
            self._paces[item.request.resolution].doubt()
            return item
        item.stage = Stage.DECODING
        self._decoding.append(item)
        self._bytes += item.decoded_bytes
        return item

    def _reason(self, item: Item) -> Drop:
        """Of an image that is dropped because it would be late."""
        alone_ns = int(1e9 * self._paces[item.request.resolution].seconds(1))
        passed = item.request.deadline_ns <= time.monotonic_ns()
        hopeless = passed or item.late(item.received_ns + alone_ns)
        return Drop.DEADLINE if hopeless else Drop.BUSY

    def _soonest_ns(self, item: Item) -> int:
        """How long it will be before an item that waits can be done: what goes before it is
        computed first."""
        pace = self._paces[item.request.resolution]
        ahead = sum(other < item for queue in (self._decoded, self._decoding) for other in queue)
        batches = ahead // pace.best
        return int(1e9 * (batches * pace.seconds(pace.best) + pace.seconds(1)))

    def _take_batch(self) -> tuple[list[Item], list[Item]]:
        """Removes the next batch from the decoded images, and what is late in front of it."""
        first = self._decoded[0]
        resolution = first.request.resolution
        pace = self._paces[resolution]
        size = self._size(pace)
        finish = time.monotonic_ns() + int(1e9 * pace.seconds(min(size, len(self._decoded))))
        items: list[Item] = []
        late: list[Item] = []
        others: list[Item] = []
        while self._decoded and len(items) < size:
            item = heapq.heappop(self._decoded)
            if item.request.resolution != resolution:
                others.append(item)
                continue
            self._bytes -= item.decoded_bytes
            if item.late(finish):
                self._forget(item)
                pace.doubt()
                late.append(item)
            else:
                item.stage = Stage.COMPUTING
                self._turns.begin(item)
                items.append(item)
        for item in others:
            heapq.heappush(self._decoded, item)
        self._may_decode.notify_all()
        self._held = max(0, self._held - len(items))
        return items, late

    def _size(self, pace: Pace) -> int:
        """Images that the next batch may have."""
        self._held, self._hold = self._hold or self._held, 0
        return self._limits.max_batch if self._held else pace.best


def _remove(heap: list[Item], item: Item) -> None:
    heap.remove(item)
    heapq.heapify(heap)
