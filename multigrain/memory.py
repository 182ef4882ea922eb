"""Running out of memory: how it is recognized and what a process does about it."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
from pathlib import Path


def trim() -> None:
    """Gives it back to the system: compilers free hundreds of megabytes, which a process would
    otherwise hold to its end. Does nothing where the C library is not glibc."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


# MERGED: Whether the kernel kills for want of memory.


def oom_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed for want of memory since the machine started, in
    containers that reached a limit of their own too. 0 where it does not count them.

    Args:
        counters: the kernel's, a name and a number a line; it has ``oom_kill`` since Linux 4.13.
    """
    try:
        lines = counters.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


# MERGED: What an engine does when memory runs out: it ends, and the daemon starts the next one.
# After a failed allocation a native library may be in any state, and a process that goes on
# would fail image after image while it looks healthy. The keeper's trial of what was in work
# then tells an image that no engine has room for from one that came at the wrong moment.


_LOG = logging.getLogger(__name__)
#: EX_OSERR of sysexits.h; the daemon says what it means.
EXIT_OUT_OF_MEMORY = 71
# How C++, CUDA, ONNX Runtime, OpenVINO and MindSpore say it.
_WORDS = ("bad_alloc", "out of memory", "cannot allocate memory", "failed to allocate memory")
# Less than a photograph takes while it is decoded.
_LITTLE_BYTES = 32 << 20


def end_if_out_of_memory(error: BaseException) -> None:
    """Ends the process if that is what the error says; else returns."""
    if _says_so(error):
        _end(error)


def end_if_nothing_is_left(error: BaseException) -> None:
    """Ends the process if the error says so and it is true; else returns.

    For decoders: a hostile file may ask for more than any machine has, and must not end an engine.
    """
    if not any(_says_so(part) for part in (error, error.__cause__) if part is not None):
        return
    try:
        mmap.mmap(-1, _LITTLE_BYTES).close()
    except OSError:
        _end(error)


def _says_so(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _WORDS)


def _end(error: BaseException) -> None:
    _LOG.error("out of memory: %s", str(error)[:200] or type(error).__name__)
    sys.stderr.flush()
    os._exit(EXIT_OUT_OF_MEMORY)
