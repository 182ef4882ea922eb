"""Large images on their way from the daemon to an engine: in shared memory, not in the socket.

A file of a camera has megabytes. In the socket a small image would wait behind it, and each of the
two processes would copy it three times. So the daemon writes it to memory that it shares with the
engine, and sends only where it lies. Its place is free again once the image is answered.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from typing import Annotated, Final

import msgspec

from multigrain import shared_memory

LEAST_BYTES: Final = 64 * 1024
"""Smaller images are sent through the socket: one system call less."""

# Addresses, not memory: only what is written takes some.
_SIZE: Final = 1 << 46
_PAGE: Final = mmap.PAGESIZE
# Places of this size at most keep their memory; new memory costs as much as a copy.
_KEPT_SIZE: Final = 1 << 20
_KEPT_BYTES: Final = 16 << 20


class StoredImage(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where an image lies.

    Attributes:
        offset: of its first byte.
        size: in bytes.
    """

    offset: Annotated[int, msgspec.Meta(ge=0, lt=_SIZE)]
    size: Annotated[int, msgspec.Meta(ge=0, lt=_SIZE)]


class SharedImages:
    """The daemon's side of the memory that it shares with one engine.

    Attributes:
        engine_fd: the descriptor for the engine, which may only read.

    Raises:
        OSError: if the host cannot provide such memory.
    """

    def __init__(self) -> None:
        self.fd = shared_memory.allocate("multigrain-images", _SIZE)
        self.engine_fd = shared_memory.read_only(self.fd)
        self._end = 0
        # Places without an image, by their size, which is a power of two; those that have memory
        # and those that have none. A place is never split or joined, so that no two overlap.
        self._kept: dict[int, list[int]] = {}
        self._empty: dict[int, list[int]] = {}
        self._kept_bytes = 0

    def put(self, image: bytes) -> StoredImage | None:
        """Stores an image; None if there is not enough memory."""
        size = _place(len(image))
        if kept := self._kept.get(size):
            offset = kept.pop()
            self._kept_bytes -= size
        elif empty := self._empty.get(size):
            offset = empty.pop()
        elif self._end + size <= _SIZE:
            offset = self._end
            self._end += size
        else:
            return None
        try:
            written = os.pwrite(self.fd, image, offset)
        except OSError:
            written = 0
        stored = StoredImage(offset, len(image))
        if written < len(image):
            self._release(offset, size)
            return None
        return stored

    def remove(self, stored: StoredImage) -> None:
        """Frees the place of an image."""
        size = _place(stored.size)
        if size > _KEPT_SIZE or self._kept_bytes + size > _KEPT_BYTES:
            self._release(stored.offset, size)
            return
        self._kept.setdefault(size, []).append(stored.offset)
        self._kept_bytes += size

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.engine_fd)
        self.fd = self.engine_fd = -1

    def _release(self, offset: int, size: int) -> None:
        """Frees a whole place: a larger image may have been there before the last one."""
        self._empty.setdefault(size, []).append(offset)
        # Other systems cannot return a part of the memory: there it stays with the place.
        if sys.platform == "linux" and self.fd >= 0:
            # Some sandboxes of containers (gVisor) cannot either.
            with contextlib.suppress(OSError), mmap.mmap(self.fd, size, offset=offset) as memory:
                memory.madvise(mmap.MADV_REMOVE)


class LargeImage:
    """An image in the shared memory, seen from the engine.

    Args:
        fd: of the memory.
        stored: where the image lies.
    """

    def __init__(self, fd: int, stored: StoredImage) -> None:
        self._fd = fd
        self._stored = stored

    def __len__(self) -> int:
        return self._stored.size

    def copy_to(self, target: bytearray | mmap.mmap) -> None:
        """Copies the image to the start of a buffer that is large enough."""
        with memoryview(target) as view, view[: len(self)] as part:
            if os.preadv(self._fd, [part], self._stored.offset) != len(self):
                raise OSError("an image in shared memory ends early")

    def read(self) -> bytes:
        """A copy of the image."""
        data = bytearray(len(self))
        self.copy_to(data)
        return bytes(data)


def _place(size: int) -> int:
    return 1 << (max(size, _PAGE) - 1).bit_length()
