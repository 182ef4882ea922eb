"""Files of every kind that a reader must refuse, for tests."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

KINDS = (
    *("pipe", "socket", "folder", "endless", "null", "broken", "loop", "unreadable"),
    *("huge", "binary", "deep", "deep objects", "number", "empty"),
)
"""Everything that :func:`put` makes."""

NEVER_READ = ("pipe", "socket", "folder", "endless", "null", "broken", "loop", "huge")
"""Those of which no byte may be read."""

_DEPTH = 200_000


def put(path: Path, kind: str) -> None:
    """Puts a hostile file in the place of another one, if there is one."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"kept-{path.name}"))
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        _socket(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    elif kind in _LINKS:
        path.symlink_to(_LINKS[kind] or path)
    else:
        path.write_bytes(_CONTENT[kind])
        if kind == "unreadable":
            path.chmod(0)


_LINKS = {"endless": "/dev/zero", "null": "/dev/null", "broken": "/nonexistent/file", "loop": ""}
_CONTENT = {
    "unreadable": b"{}\n",
    "binary": bytes(range(256)) * 64 + b"\n",
    "deep": b"[" * _DEPTH + b"\n",
    "deep objects": b'{"a":' * _DEPTH + b"\n",
    "number": b"9" * 10_000 + b"\n",
    "empty": b"",
}


def _socket(path: Path) -> None:
    # Through a descriptor: the path of a socket has at most 107 bytes.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def within_seconds(work: Callable[[], T], seconds: float = 60.0) -> T:
    """The result of a function; fails instead of waiting for ever."""
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]
    return found[0]


@contextmanager
def alarm(seconds: float = 60.0) -> Iterator[None]:
    """Ends a block that waits for ever, even in a system call of this thread."""

    def ring(_number: int, _frame: object) -> None:
        raise AssertionError("it waits for ever")

    handler = signal.signal(signal.SIGALRM, ring)
    # pytest-timeout uses the same timer.
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)
