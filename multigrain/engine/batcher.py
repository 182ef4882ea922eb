"""The threads of an engine wait here for what :mod:`multigrain.engine.batching` decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from multigrain.engine.batching import DropReason, Item, Schedule
from multigrain.engine.lanes import Lane


class Batcher:
    """A schedule for the decoding threads and the computing thread. Thread-safe.

    Args:
        schedule: what is decoded and computed next.
        on_drop: called, outside the lock, for each image that is dropped.
    """

    def __init__(self, schedule: Schedule, on_drop: Callable[[Item, DropReason], None]) -> None:
        self._schedule = schedule
        self._on_drop = on_drop
        self._closed = False
        self._lock = threading.Lock()
        self._may_decode = {lane: threading.Condition(self._lock) for lane in Lane}
        self._may_compute = threading.Condition(self._lock)

    def submit(self, item: Item) -> None:
        """Queues an image."""
        with self._lock:
            self._schedule.submit(item, time.monotonic_ns())
            self._may_decode[item.lane].notify()

    def cancel(self, item_id: int) -> None:
        """Drops an image that has not reached the network; an unknown id is a finished one."""
        with self._lock:
            item = self._schedule.cancel(item_id)
            if item is None:
                return
            self._notify_decoders()
        self._on_drop(item, DropReason.CANCELLED)

    def next_to_decode(self, lane: Lane = Lane.ORDINARY) -> Item | None:
        """Waits for an image, and for room behind the decoder; None when closed."""
        may_decode = self._may_decode[lane]
        while True:
            with may_decode:
                while not self._closed and not self._schedule.can_decode(lane):
                    may_decode.wait()
                if self._closed:
                    return None
                item, reason = self._schedule.take_to_decode(lane, time.monotonic_ns())
            if reason is None:
                return item
            self._on_drop(item, reason)

    def decoded(self, item: Item) -> None:
        """Queues a decoded image for the network."""
        with self._lock:
            kept = self._schedule.decoded(item)
            if kept:
                self._may_compute.notify()
            else:
                self._notify_decoders()
        if not kept:
            self._on_drop(item, DropReason.CANCELLED)

    def decode_failed(self, item: Item) -> None:
        """Removes an image that could not be decoded; the caller answers it."""
        with self._lock:
            self._schedule.decode_failed(item)
            self._notify_decoders()

    def decode_later(self, item: Item) -> None:
        """Queues an image whose decoding was ended for another attempt, in the slow lane."""
        with self._lock:
            kept = self._schedule.decode_later(item)
            self._notify_decoders()
        if not kept:
            self._on_drop(item, DropReason.CANCELLED)

    def next_batch(self) -> list[Item] | None:
        """Waits for a batch; None when closed. :meth:`done` must be called after it."""
        while True:
            with self._may_compute:
                while not (self._closed or self._schedule.can_compute()):
                    self._may_compute.wait()
                if self._closed:
                    return None
                batch, late = self._schedule.take_batch(time.monotonic_ns())
                self._notify_decoders()
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
            return self._schedule.done(batch, seconds)

    def close(self) -> None:
        """Ends all waiting threads."""
        with self._lock:
            self._closed = True
            self._notify_decoders()
            self._may_compute.notify_all()

    def _notify_decoders(self) -> None:
        for condition in self._may_decode.values():
            condition.notify_all()
