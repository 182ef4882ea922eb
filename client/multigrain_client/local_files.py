"""Files that a caller names: what they are is known before anything is read."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import BinaryIO

STANDARD_INPUT, STANDARD_OUTPUT = "/dev/stdin", "/dev/stdout"
_DESCRIPTOR = re.compile(r"(?:/dev|/proc/self)/fd/([0-9]{1,6})")
_STANDARD = {STANDARD_INPUT: 0, STANDARD_OUTPUT: 1, "/dev/stderr": 2}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading. Unlike ``open`` it never waits, as for a named pipe.

    Raises:
        OSError: if it is something else, or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {kind(mode)} and not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def kind(mode: int) -> str:
    """What a file with this mode is, with an article."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def descriptor_of(path: str | os.PathLike[str]) -> int | None:
    """The open file descriptor that a path such as /dev/stdin or /dev/fd/63 stands for."""
    text = os.fspath(path)
    found = _DESCRIPTOR.fullmatch(text)
    return int(found[1]) if found else _STANDARD.get(text)
