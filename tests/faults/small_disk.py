"""A disk of its own, small enough to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.daemon import processes_below


class SmallDisk:
    """A mounted file system.

    Attributes:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leaves so many bytes, or, of 0, not one."""
        with self._ballast.open("ab", buffering=0) as file:
            if leave:
                os.posix_fallocate(file.fileno(), 0, self.room - leave)
                return
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    @property
    def room(self) -> int:
        """Bytes."""
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def empty(self) -> None:
        """Gives the room back."""
        self._ballast.unlink()


@contextmanager
def small_disk(path: Path, mib: int) -> Iterator[SmallDisk]:
    """Mounts one; ends what runs on it, and unmounts it."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,nr_inodes=10000", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {getattr(error, 'stderr', '') or error}")
    try:
        yield SmallDisk(path)
    finally:
        for process in processes_below(path):
            process.kill()
        subprocess.run(["umount", "--lazy", str(path)], check=True)
