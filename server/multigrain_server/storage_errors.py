"""File system errors as errors that clients can act on, and detection of changed files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.storage import os_error_hint


@contextmanager
def storage_errors(failure: str, location: str) -> Iterator[None]:
    """Turns an OSError of the block into a STORAGE error that says what to do.

    Args:
        failure: what could not be done ("the job cannot be written").
        location: where ("jobs/ of the data directory"), used if permission is missing there.

    Raises:
        MultigrainError: STORAGE for an OSError of the block; its own errors unchanged.
    """
    try:
        yield
    except OSError as error:
        hint = os_error_hint(
            error,
            f"write in {location}",
            "free up disk space in the data directory, or repair the disk",
        )
        raise MultigrainError(
            ErrorKind.STORAGE, f"{failure} ({error.strerror or error}); {hint}"
        ) from error


#: Modification and change times in ns, size in bytes, inode number.
Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Changes when the file is written or replaced; None if the file does not exist."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
