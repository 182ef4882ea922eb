"""The queue between images and the network: continuous batching without a timer.

A batch leaves the moment the network is free and takes what is decoded by then, up to the
largest size. An idle engine therefore adds no delay, and a busy one fills its batches by
itself. Work that nobody waits for any more never reaches the network.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.wire import Submit


class Stage(Enum):
    """Where an image is."""

    WAITING = "waiting"
    DECODING = "decoding"
    DECODED = "decoded"
    COMPUTING = "computing"


class Drop(Enum):
    """Why an image was not computed."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(slots=True, eq=False)
class Item:
    """One image on its way. ``tensor`` is float32 (3, S, S) once it is decoded."""

    request: Submit
    data: bytes
    received_ns: int = field(default_factory=time.monotonic_ns)
    decode_ns: int = 0
    tensor: NDArray[np.float32] | None = None
    stage: Stage = Stage.WAITING
    cancelled: bool = False

    def expired(self, now_ns: int) -> bool:
        return 0 < self.request.deadline_ns <= now_ns


class Batcher:
    """Thread-safe: one reader submits, some threads decode, one thread computes.

    Args:
        max_batch: images in a batch at most.
        decode_ahead: decoded images that may wait. They are hundreds of times larger than
            the files they come from, so only as many as keep the network busy are kept.
        on_drop: called, outside the lock, for each image that is dropped.
    """

    def __init__(
        self, max_batch: int, decode_ahead: int, on_drop: Callable[[Item, Drop], None]
    ) -> None:
        self._max_batch = max_batch
        self._decode_ahead = decode_ahead
        self._on_drop = on_drop
        self._items: dict[int, Item] = {}
        self._waiting: deque[Item] = deque()
        self._decoded: deque[Item] = deque()
        self._decoding = 0
        self._hold = 0
        self._closed = False
        lock = threading.Lock()
        self._may_decode = threading.Condition(lock)
        self._may_compute = threading.Condition(lock)
        self._lock = lock

    def submit(self, item: Item) -> None:
        with self._lock:
            self._items[item.request.id] = item
            self._waiting.append(item)
            self._may_decode.notify()

    def cancel(self, item_id: int) -> None:
        """Drops the image if it has not reached the network; unknown ids are finished ones."""
        with self._lock:
            item = self._items.get(item_id)
            if item is None:
                return
            item.cancelled = True
            if item.stage is Stage.WAITING:
                self._waiting.remove(item)
            elif item.stage is Stage.DECODED:
                self._decoded.remove(item)
                self._may_decode.notify()
            else:
                return
            del self._items[item_id]
        self._on_drop(item, Drop.CANCELLED)

    def hold(self, items: int) -> None:
        """Keeps batches back until ``items`` are decoded, once; 0 lets go at once."""
        with self._lock:
            self._hold = items
            self._may_compute.notify()
            self._may_decode.notify_all()

    def next_to_decode(self) -> Item | None:
        """Waits for an image and for room behind the decoder; None when closed."""
        while True:
            with self._may_decode:
                while not self._closed and not (self._waiting and self._has_room()):
                    self._may_decode.wait()
                if self._closed:
                    return None
                item = self._waiting.popleft()
                if not item.expired(time.monotonic_ns()):
                    item.stage = Stage.DECODING
                    self._decoding += 1
                    return item
                del self._items[item.request.id]
            self._on_drop(item, Drop.DEADLINE)

    def decoded(self, item: Item) -> None:
        """Hands over an image whose ``tensor`` is set."""
        with self._lock:
            self._decoding -= 1
            if not item.cancelled:
                item.stage = Stage.DECODED
                self._decoded.append(item)
                self._may_compute.notify()
                return
            del self._items[item.request.id]
            self._may_decode.notify()
        self._on_drop(item, Drop.CANCELLED)

    def failed(self, item: Item) -> None:
        """Forgets an image that could not be decoded; the caller answers it."""
        with self._lock:
            self._decoding -= 1
            del self._items[item.request.id]
            self._may_decode.notify()

    def next_batch(self) -> list[Item] | None:
        """Waits for work; images of one resolution, oldest first. None when closed."""
        while True:
            with self._may_compute:
                while not self._closed and (not self._decoded or len(self._decoded) < self._hold):
                    self._may_compute.wait()
                if self._closed:
                    return None
                self._hold = 0
                batch, dropped = self._take()
                self._may_decode.notify_all()
            for item in dropped:
                self._on_drop(item, Drop.DEADLINE)
            if batch:
                return batch

    def finish(self, item: Item) -> bool:
        """Forgets a computed image; whether somebody still waits for its answer."""
        with self._lock:
            self._items.pop(item.request.id, None)
            return not item.cancelled

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._may_decode.notify_all()
            self._may_compute.notify_all()

    def _has_room(self) -> bool:
        return len(self._decoded) + self._decoding < max(self._decode_ahead, self._hold)

    def _take(self) -> tuple[list[Item], list[Item]]:
        """Removes the next batch, and what has expired in front of it, from the queue."""
        now = time.monotonic_ns()
        batch: list[Item] = []
        dropped: list[Item] = []
        others: deque[Item] = deque()
        while self._decoded and len(batch) < self._max_batch:
            item = self._decoded.popleft()
            if item.expired(now):
                del self._items[item.request.id]
                dropped.append(item)
            elif batch and item.request.resolution != batch[0].request.resolution:
                others.append(item)
            else:
                item.stage = Stage.COMPUTING
                batch.append(item)
        self._decoded.extendleft(reversed(others))
        return batch, dropped
