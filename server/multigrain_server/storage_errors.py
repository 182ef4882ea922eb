"""A refusal of the file system, as one that callers can act on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.storage import remedy


@contextmanager
def stored(what: str, place: str) -> Iterator[None]:
    """Around what changes files.

    Args:
        what: that did not happen ("the job cannot be written").
        place: where ("jobs/ of the data directory"), for who may not write there.

    Raises:
        MultigrainError: STORAGE for an OSError of the block; its own errors as they are.
    """
    try:
        yield
    except OSError as error:
        todo = remedy(
            error, f"write in {place}", "make room on the disk of the data directory, or mend it"
        )
        raise MultigrainError(
            ErrorKind.STORAGE, f"{what} ({error.strerror or error}); {todo}"
        ) from error


# MERGED: Whether a file is another one than it was.


#: When it was written, its size, and which file it is.
Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Differs from an earlier one if the file was written or replaced; None if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
