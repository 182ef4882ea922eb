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


def read_only(fd: int) -> int:
    """Another descriptor of shared memory, which can only be read through it.

    Memory that a captured process may write is memory that it may fill, and the limits of a process
    do not count it. On Linux the memory itself becomes read-only as well, so that who has this
    descriptor cannot open it once more for writing (unless as root with CAP_DAC_OVERRIDE). Other
    systems, and containers that hide /proc, give the descriptor all rights.

    Args:
        fd: from :func:`allocate`; it can still be written through.
    """
    try:
        opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.fchmod(fd, 0o400)
    except OSError:
        return os.dup(fd)
    return opened
