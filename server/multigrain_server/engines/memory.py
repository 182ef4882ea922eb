"""The memory that an engine holds, with its decoder processes."""

from __future__ import annotations

import contextlib
import mmap

import psutil


def engine_memory(pid: int) -> int:
    """Bytes of an engine and of all processes below it; 0 if it has ended.

    Decoder processes share most of their memory with the template that they were forked from: of
    them the proportional set size counts (proc(5), smaps_rollup), in which each shared page counts
    once for all processes together.

    Args:
        pid: of the engine.
    """
    try:
        total = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
    return total + sum(map(_proportional_bytes, _descendants(pid)))


def _descendants(pid: int) -> list[int]:
    """Children of the process's first thread, which starts them all, and theirs."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(number) for number in file.read().split()]
    except OSError:  # not every kernel has the file
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return []
    return [one for child in children for one in (child, *_descendants(child))]


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:  # it has just ended, or may not be looked into
        pass
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
        resident, shared = map(int, file.read().split()[1:3])
        return (resident - shared) * mmap.PAGESIZE
    return 0
