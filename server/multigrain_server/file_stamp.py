"""Whether a file is another one than it was."""

from __future__ import annotations

import os
from pathlib import Path

#: When it was written, its size, and which file it is.
Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Differs from an earlier one if the file was written or replaced; None if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
