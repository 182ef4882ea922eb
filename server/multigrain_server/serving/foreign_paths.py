"""Texts of libraries, without the places where they are installed."""

from __future__ import annotations

import re

# Two folders at least: "and/or" and "/s" are no paths.
_FOLDERS = re.compile(r"(?<![\w./:-])/(?:[\w.+@~-]+/)+(?=[\w.+@~-])")


def without_folders(text: str) -> str:
    """The same with ".../" before the last part of each absolute path.

    What an engine says of its end may be a library's line about its own files; callers need not
    learn how the machine is laid out, and the log has the whole.
    """
    return _FOLDERS.sub(".../", text)
