"""Names of open files: /dev/stdin and the like."""

from __future__ import annotations

import os
import re

STANDARD_INPUT, STANDARD_OUTPUT = "/dev/stdin", "/dev/stdout"
_DESCRIPTOR = re.compile(r"(?:/dev|/proc/self)/fd/([0-9]{1,6})")
_STANDARD = {STANDARD_INPUT: 0, STANDARD_OUTPUT: 1, "/dev/stderr": 2}


def descriptor_of(path: str | os.PathLike[str]) -> int | None:
    """The open file descriptor that a path such as /dev/stdin or /dev/fd/63 stands for."""
    text = os.fspath(path)
    found = _DESCRIPTOR.fullmatch(text)
    return int(found[1]) if found else _STANDARD.get(text)
