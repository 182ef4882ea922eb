"""Memory that processes share through a file descriptor."""

from __future__ import annotations

import os
import sys
import tempfile


def allocate(name: str, size: int) -> int:
    """A file descriptor of empty shared memory; it takes up what is written to it only.

    On Linux its size is sealed. The kernel ends a process that reads memory which another one has
    cut off, and a captured decoder process or engine could end the engine or the daemon so.

    Args:
        name: for ``/proc/PID/maps``.
        size: in bytes.
    """
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
        os.ftruncate(fd, size)
        return fd
    import fcntl

    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
