"""Whether the disk of the job folders has room."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LEAST_BYTES = 1 << 16  # a few events, or their last one with the tail of a log
_SECONDS = 1.0


class DiskRoom:
    """Looked at once a second at most."""

    def __init__(self) -> None:
        self._look_at = 0.0
        self._full = False

    def full(self, path: Path) -> bool:
        """Whether there is hardly room for an event on the disk of ``path``."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _SECONDS
            disk = os.statvfs(path)
            # What is kept back for root is room only for root.
            blocks = disk.f_bavail if os.geteuid() else disk.f_bfree
            self._full = blocks * disk.f_frsize < _LEAST_BYTES
        return self._full
