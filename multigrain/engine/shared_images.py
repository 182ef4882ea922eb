"""Large images on their way from the daemon to an engine: in shared memory, not in the socket.

A file of a camera has megabytes. In the socket a small image would wait behind it, and each of the
two processes would copy it three times. So the daemon writes it to memory that it shares with the
engine, and sends only where it lies. Its place is free again once the image is answered.
"""

from __future__ import annotations

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
# Places of this size at most are used again as they are; new memory costs as much as a copy.
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

    Raises:
        OSError: if the host cannot provide such memory.
    """

    def __init__(self) -> None:
        self.fd = shared_memory.allocate("multigrain-images", _SIZE)
        self._end = 0
        # Places without an image, by their size, which is a power of two: those that have memory,
        # and those that have none. All are used again, so that no two images ever share a place
        # and the addresses last forever.
        self._kept: dict[int, list[int]] = {}
        self._empty: dict[int, list[int]] = {}
        self._kept_bytes = 0

    def put(self, image: bytes) -> StoredImage | None:
        """Stores an image; None if there is not enough memory."""
        size = _place(len(image))
        offset = self._take(size)
        if offset is None:
            return None
        stored = StoredImage(offset, len(image))
        try:
            written = os.pwrite(self.fd, image, offset)
        except OSError:
            written = 0
        if written < len(image):
            self._release(stored)
            return None
        return stored

    def remove(self, stored: StoredImage) -> None:
        """Frees the place of an image."""
        size = _place(stored.size)
        large = size > _KEPT_SIZE or self._kept_bytes + size > _KEPT_BYTES
        if large and sys.platform == "linux":  # others cannot return a part of the memory
            self._release(stored)
            return
        self._kept.setdefault(size, []).append(stored.offset)
        self._kept_bytes += size

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def _take(self, size: int) -> int | None:
        """A place; None if all addresses are in use."""
        if places := self._kept.get(size):
            self._kept_bytes -= size
            return places.pop()
        if places := self._empty.get(size):
            return places.pop()
        if self._end + size > _SIZE:
            return None
        offset = self._end
        self._end += size
        return offset

    def _release(self, stored: StoredImage) -> None:
        """Returns the memory of a place to the kernel."""
        if sys.platform == "linux" and self.fd >= 0:
            with mmap.mmap(self.fd, _pages(stored.size), offset=stored.offset) as memory:
                memory.madvise(mmap.MADV_REMOVE)
        self._empty.setdefault(_place(stored.size), []).append(stored.offset)


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


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
