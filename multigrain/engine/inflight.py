"""Which images an engine has in its hands: for the daemon to read after the engine has died.

Shared memory and not messages: writing it costs less than a microsecond, nothing at all to the
reader, and what was written last is there whatever the process died of.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import time
from dataclasses import dataclass

# Two numbers a slot: since when, then whose. Aligned, so neither is ever half-written.
_SLOT_BYTES = 16


@dataclass(frozen=True)
class Held:
    """An image that is being decoded or computed, since a moment on CLOCK_MONOTONIC."""

    item_id: int
    since_ns: int


class InHand:
    """Slots: first one for each image of a batch, then one for each decoding thread.

    Args:
        fd: of shared memory that :meth:`allocate` made; it can be closed afterwards.
        slots: the same number on both sides.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self._memory = mmap.mmap(fd, slots * _SLOT_BYTES)
        self._numbers = memoryview(self._memory).cast("q")
        self._slots = slots

    @staticmethod
    def allocate(slots: int) -> int:
        """A file descriptor of empty shared memory for ``slots`` slots."""
        if sys.platform == "linux":
            fd = os.memfd_create("multigrain-in-hand")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, slots * _SLOT_BYTES)
        return fd

    def take(self, slot: int, item_id: int) -> None:
        """Notes that work on an image begins. Ids are above 0."""
        self._numbers[2 * slot] = time.monotonic_ns()
        self._numbers[2 * slot + 1] = item_id

    def put_down(self, slot: int) -> None:
        self._numbers[2 * slot + 1] = 0

    def held(self) -> list[Held]:
        """What is in work now, or was when the writer died."""
        numbers = self._numbers.tolist()
        return [
            Held(item_id, since_ns)
            for since_ns, item_id in zip(numbers[::2], numbers[1::2], strict=True)
            if item_id
        ]

    def close(self) -> None:
        """Gives the memory back, and the descriptor that it holds; nothing is read after that."""
        self._numbers.release()
        self._memory.close()
