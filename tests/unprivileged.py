"""What a user without rights meets, where the tests themselves may run as root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[int]:
    """The block runs as a user to whom files of mode 0 are closed; gives that user's number.

    Nothing may be imported in the block: that user may not be able to read the interpreter.
    """
    if os.geteuid() != 0:
        yield os.geteuid()
        return
    os.seteuid(_NOBODY)
    try:
        yield _NOBODY
    finally:
        os.seteuid(0)
