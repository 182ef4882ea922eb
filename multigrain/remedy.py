"""What to do about an error of the file system."""

from __future__ import annotations

import errno
import os


def remedy(error: OSError, wanted: str, otherwise: str) -> str:
    """The advice that belongs to ``error``.

    No room on a disk and no permission want different things of an operator, who also has to
    know whom to permit something: a daemon often runs as another user than the one who looks.

    Args:
        error: as the system gave it.
        wanted: what this process could not do ("read it"), said where it is not allowed to.
        otherwise: the advice in every other case.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"let uid {os.geteuid()} {wanted}"
    return otherwise
