"""A refusal of the file system, as one that callers can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.remedy import remedy


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
