"""Compiled graphs on disk: one file each, named by a key, with a checksum and a bounded total."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import Final

from multigrain.files import open_regular, open_to_write
from multigrain.storage import TEMPORARY_PREFIX

_SUFFIX: Final = ".graph"
_DIGEST_LINE: Final = 65  # SHA-256 in hexadecimal and a newline
_OLD_SECONDS: Final = 3600.0


class GraphStore:
    """A folder of compiled graphs that jobs and workers share.

    A file is written under a temporary name and renamed, and never changed: readers and writers
    need no lock. A damaged file, as after a power failure, is found by its checksum and removed.

    The content decides what a training run computes. The folder must therefore belong to this user,
    and nobody else may write to it; otherwise nothing is read or written.

    Args:
        folder: of the graphs; created if missing.
        max_bytes: of all graphs together. Those that were not used for the longest time are
            removed first.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, key: str) -> bytes | None:
        """Returns a graph and marks it as used; None if there is no intact one."""
        path = self._path(key)
        try:
            self._check_owner()
            with open_regular(path) as file:
                digest = file.read(_DIGEST_LINE)
                data = file.read(self._max_bytes + 1)
                if digest != _digest_line(data):
                    self.drop(key)
                    return None
                os.utime(file.fileno())
                return data
        except OSError:
            return None

    def write(self, key: str, data: bytes) -> bool:
        """Stores a graph; returns False if it is too large or cannot be written."""
        size = _DIGEST_LINE + len(data)
        aside = self.folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{key}"
        try:
            self._check_owner()
            disk = os.statvfs(self.folder)
            # A twentieth of the disk stays free for checkpoints and event logs.
            free = disk.f_bavail * disk.f_frsize - disk.f_blocks * disk.f_frsize // 20
            if size > min(self._max_bytes, free):
                return False
            self._make_room(size)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(open_to_write(aside, flags, 0o600), "wb") as file:
                file.write(_digest_line(data))
                file.write(data)
            aside.replace(self._path(key))
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            return False
        return True

    def drop(self, key: str) -> None:
        """Removes a graph."""
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _check_owner(self) -> None:
        status = os.stat(self.folder)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{self.folder}: others may write to it")

    def _make_room(self, size: int) -> None:
        """Removes the least recently used graphs, and temporary files of killed writers."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.startswith(TEMPORARY_PREFIX):
                    if status.st_mtime < time.time() - _OLD_SECONDS:
                        os.unlink(entry.path)
                elif entry.name.endswith(_SUFFIX):
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = size + sum(one for _, one, _ in found)
        for _, one, path in sorted(found):
            if total <= self._max_bytes:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= one


def _digest_line(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode() + b"\n"
