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

from multigrain.engine.item import Drop, Item, Stage
from multigrain.engine.pace import Pace
from multigrain.engine.turns import Turns


@dataclass(frozen=True)
class Limits:
    """What a batcher may hold and hand out.

    Attributes:
        max_batch: images in a batch at most.
        lanes: batches that are computed at a time, each by a thread of its own.
        decode_ahead: decoded images that may wait, beyond a held batch. They are hundreds of
            times larger than the files they come from: enough to keep the network busy, no more.
        decoded_bytes: of those images; one is always allowed.
    """

    max_batch: int
    lanes: int
    decode_ahead: int
    decoded_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one resolution, to compute together. ``alone``: no other batch is computed
    before this one is done, so that it may use the whole device."""

    items: list[Item]
    alone: bool


class Batcher:
    """Thread-safe: one reader submits, some threads decode, ``limits.lanes`` compute.

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
        self._running = 0
        self._alone = False
        self._idle_lanes = 0
        self._hold = 0
        self._held = 0
        self._closed = False
        lock = threading.Lock()
        self._may_decode = threading.Condition(lock)
        self._may_compute = threading.Condition(lock)
        self._lock = lock

    def submit(self, item: Item) -> None:
        with self._lock:
            item.lonely = not self._items
            self._items[item.request.id] = item
            self._turns.enter(item)
            heapq.heappush(self._waiting, item)
            if item.lonely and self._idle_lanes:
                # An idle lane decodes by itself, which saves a change of threads.
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
                self._bytes -= item.tensor_bytes
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

    def decoded(self, item: Item, *, by_lane: bool = False) -> None:
        """Hands over an image whose ``tensor`` is set; a lane comes back for it by itself."""
        with self._lock:
            self._decoding.remove(item)
            if not item.cancelled:
                item.stage = Stage.DECODED
                heapq.heappush(self._decoded, item)
                if not by_lane:
                    self._may_compute.notify()
                return
            self._bytes -= item.tensor_bytes
            self._forget(item)
            self._may_decode.notify()
        self._on_drop(item, Drop.CANCELLED)

    def failed(self, item: Item) -> None:
        """Forgets an image that could not be decoded; the caller answers it."""
        with self._lock:
            self._decoding.remove(item)
            self._bytes -= item.tensor_bytes
            self._forget(item)
            self._may_decode.notify()

    def next_work(self) -> Batch | Item | None:
        """Waits for a batch or, with nothing to compute, an image to decode; None when closed.

        A batch holds images of one resolution, in the order of their ranks. After it,
        :meth:`done` must be called.
        """
        while True:
            with self._may_compute:
                self._idle_lanes += 1
                while not (self._closed or self._can_compute() or self._lane_can_decode()):
                    self._may_compute.wait()
                self._idle_lanes -= 1
                if self._closed:
                    return None
                if not self._can_compute():
                    item = self._take_to_decode()
                    batch, late = None, [] if item.stage is Stage.DECODING else [item]
                else:
                    item = None
                    batch, late = self._take_batch()
            for dropped in late:
                self._on_drop(dropped, self._reason(dropped))
            if batch is not None:
                return batch
            if item is not None and not late:
                return item

    def done(self, batch: Batch, seconds: float) -> list[Item]:
        """The batch took so long; returns its images for whose answer nobody waits any more."""
        with self._lock:
            self._running -= 1
            pace = self._paces[batch.items[0].request.resolution]
            pace.measured(len(batch.items), seconds)
            if batch.alone:
                self._alone = False
                self._may_compute.notify_all()
            for item in batch.items:
                self._forget(item)
            return [item for item in batch.items if item.cancelled]

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
        next_bytes = self._bytes + self._waiting[0].tensor_bytes
        return not ahead or (
            ahead < self._limits.decode_ahead and next_bytes <= self._limits.decoded_bytes
        )

    def _can_compute(self) -> bool:
        return bool(self._decoded) and len(self._decoded) >= self._hold and not self._alone

    def _lane_can_decode(self) -> bool:
        # Only what no decoder has begun to fetch for it.
        return self._can_decode() and not self._decoded and not self._alone

    def _take_to_decode(self) -> Item:
        """The first that waits: in stage DECODING, or forgotten because it would be late."""
        item = heapq.heappop(self._waiting)
        if item.late(time.monotonic_ns() + self._soonest_ns(item)):
            self._forget(item)
            self._paces[item.request.resolution].doubt()
            return item
        item.stage = Stage.DECODING
        self._decoding.append(item)
        self._bytes += item.tensor_bytes
        return item

    def _reason(self, item: Item) -> Drop:
        """Of an image that is dropped because it would be late."""
        alone_ns = int(1e9 * self._paces[item.request.resolution].seconds(1))
        hopeless = item.late(item.received_ns + alone_ns) or item.late(time.monotonic_ns())
        return Drop.DEADLINE if hopeless else Drop.BUSY

    def _soonest_ns(self, item: Item) -> int:
        """How long it will be before an item that waits can be done: what goes before it is
        computed first, on all lanes."""
        pace = self._paces[item.request.resolution]
        ahead = sum(other < item for queue in (self._decoded, self._decoding) for other in queue)
        batches = ahead // (pace.best * self._limits.lanes)
        return int(1e9 * (batches * pace.seconds(pace.best) + pace.seconds(1)))

    def _take_batch(self) -> tuple[Batch | None, list[Item]]:
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
            self._bytes -= item.tensor_bytes
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
        if not items:
            return None, late
        self._held = max(0, self._held - len(items))
        self._running += 1
        if self._decoded:
            self._may_compute.notify()
        self._alone = self._is_alone(items)
        return Batch(items, self._alone), late

    def _size(self, pace: Pace) -> int:
        """Images that the next batch may have."""
        self._held, self._hold = self._hold or self._held, 0
        if self._held:
            return self._limits.max_batch
        # Of a short queue every lane that is free gets its part.
        free = self._limits.lanes - self._running
        return min(pace.best, -(-len(self._decoded) // free))

    def _is_alone(self, items: list[Item]) -> bool:
        """Whether a batch has the engine for itself: always on one lane; on several only the
        single image of a lone caller, for whom all cores together are faster than one."""
        if self._limits.lanes == 1:
            return True
        rest = self._decoded or self._waiting or self._decoding
        return self._running == 1 and len(items) == 1 and items[0].lonely and not rest


def _remove(heap: list[Item], item: Item) -> None:
    heap.remove(item)
    heapq.heapify(heap)
