"""The lock on a job's event log: whoever writes the log holds it, and nobody else writes.

It is an advisory ``flock``, which the kernel drops when its holder ends in any way: a lock
that is held means a writer that lives.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

PROBE_SECONDS = 0.5
"""How long ``lock_exclusive`` keeps trying: a probe by ``is_locked`` holds a shared lock for
some microseconds, and must not look like a second writer."""


class LockHeldError(Exception):
    """Another process holds the lock: it is the writer."""


def lock_exclusive(fd: int, wait_seconds: float = PROBE_SECONDS) -> None:
    """Takes the exclusive lock of an open file.

    Raises:
        LockHeldError: if another open file holds it for all of ``wait_seconds``.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockHeldError from None
        time.sleep(0.005)


def is_locked(path: Path) -> bool:
    """Whether a writer holds the log. False if the file does not exist.

    Leaves the holder alone: it asks for a shared lock without waiting and gives it back at once.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
