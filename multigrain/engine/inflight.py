"""Which images an engine is decoding or computing, for the daemon to read after a crash.

Shared memory and not messages: a write costs less than a microsecond, the reader needs no thread,
and the last write survives the writer whatever killed it.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import time
from dataclasses import dataclass

# Two int64 per slot: start time, then image id. They are aligned, so neither is ever half-written.
_SLOT_BYTES = 16


@dataclass(frozen=True)
class InFlightImage:
    """An image that has been decoded or computed since a moment on CLOCK_MONOTONIC."""

    item_id: int
    since_ns: int


class InFlightSlots:
    """A table in shared memory: a slot per image of a batch, then one per decoding thread.

    Args:
        fd: of shared memory that :meth:`allocate` made; it can be closed afterwards.
        slots: the same number in both processes.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self._memory = mmap.mmap(fd, slots * _SLOT_BYTES)
        self._numbers = memoryview(self._memory).cast("q")

    @staticmethod
    def allocate(slots: int) -> int:
        """A file descriptor of empty shared memory for ``slots`` slots."""
        if sys.platform == "linux":
            fd = os.memfd_create("multigrain-inflight")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, slots * _SLOT_BYTES)
        return fd

    def record(self, slot: int, item_id: int) -> None:
        """Records that work on an image begins. Ids are above 0."""
        self._numbers[2 * slot] = time.monotonic_ns()
        self._numbers[2 * slot + 1] = item_id

    def clear(self, slot: int) -> None:
        """Records that work on the slot's image has ended."""
        self._numbers[2 * slot + 1] = 0

    def images(self) -> list[InFlightImage]:
        """The images that are processed now, or were when the writer died."""
        numbers = self._numbers.tolist()
        return [
            InFlightImage(item_id, since_ns)
            for since_ns, item_id in zip(numbers[::2], numbers[1::2], strict=True)
            if item_id
        ]

    def close(self) -> None:
        """Unmaps the memory; nothing can be read afterwards."""
        self._numbers.release()
        self._memory.close()
