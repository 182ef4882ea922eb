"""Out-of-memory errors: recognizing them, what an engine does about them, and returning memory."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import re
import sys
from pathlib import Path

from multigrain import machine

_LOG = logging.getLogger(__name__)

EXIT_OUT_OF_MEMORY = 71
"""Exit code of an engine that ran out of memory (EX_OSERR of sysexits.h)."""

_OUT_OF_MEMORY = re.compile(
    "|".join(
        (
            # CUDA ("CUDA error: out of memory", CUDA_ERROR_OUT_OF_MEMORY), oneDNN, PIL, Ascend,
            # OpenCL (CL_OUT_OF_HOST_MEMORY), "OutOfMemoryError".
            r"out[ _]?of[ _]?((host|device)[ _])?memory",
            # MindSpore: "Memory isn't enough and alloc failed", "Memory not enough".
            r"memory (is not|isn't|not) enough",
            r"(not enough|insufficient) (\w+ )?memory",
            # CANN: "Available memory is insufficient", "Memory resources are exhausted".
            r"memory (resources )?(is|are) (insufficient|exhausted)",
            # C++: std::bad_alloc, "bad allocation"; ACL_ERROR_BAD_ALLOC.
            r"bad[ _]alloc",
            # libc, ONNX Runtime ("Failed to allocate memory for requested buffer of size ..."),
            # CANN. A library without room for thread-local data is an installation problem.
            r"(cannot|can't|could not|unable to|failed to) alloc(ate)? (\w+ ){0,2}memory"
            r"(?! in static TLS block)",
            # ONNX Runtime's arena, at its limit.
            r"available memory of \d+ is smaller than requested bytes",
            # MindSpore on Ascend: "Malloc device memory failed", "alloc memory failed".
            r"m?alloc(ate)? (\w+ ){0,2}memory failed",
            # "Memory allocation failed. Size=...", CANN's Memory_Allocation_Failure.
            r"memory[ _]alloc(ation)?[ _](error|fail)",
            # cuDNN and cuBLAS.
            r"_STATUS_ALLOC_FAILED",
            r"cudaErrorMemoryAllocation",
            # NumPy: "Unable to allocate 3.20 GiB for an array with shape ...".
            r"unable to allocate [\d.]+ ?([KMGTPE]i?B|bytes)",
            # The last line of Python's own.
            r"\bMemoryError\b",
            # ACL: the code, its name, and the runtime's message number.
            r"ACL_ERROR_RT_MEMORY_ALLOCATION|\b207001\b|\bEL0004\b",
        )
    ),
    re.IGNORECASE,
)
# Less than a photograph takes while it is decoded.
_PROBE_BYTES = 32 << 20
_MAX_CAUSES = 16
# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Larger than most images, which are not worth a system call.
_LARGE_BLOCK = 4 << 20


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out.

    Recognizes Python's MemoryError, ENOMEM, and the texts of every runtime that may compute here:
    MindSpore, ONNX Runtime, OpenVINO, CUDA and Ascend.

    Args:
        error: from the host's memory or a device's.
    """
    found: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if found is None:
            return False
        if isinstance(found, MemoryError):
            return True
        if isinstance(found, OSError) and found.errno is not None:
            # Its text may hold any path.
            if found.errno == errno.ENOMEM:
                return True
        elif _OUT_OF_MEMORY.search(str(found)):
            return True
        found = found.__cause__
    return False


def exit_if_out_of_memory(error: BaseException) -> None:
    """Ends the process with ``EXIT_OUT_OF_MEMORY`` if memory ran out; else returns.

    After a failed allocation a native library may be in any state, and an engine that went on
    could fail image after image while it looks healthy. The daemon starts a new engine, and
    finds out by itself whether one image needs more memory than any engine has.
    """
    if is_out_of_memory(error):
        _exit(error)


def is_memory_exhausted() -> bool:
    """Whether even a small allocation fails now.

    A malicious file may ask for more memory than any machine has, and be refused it: that says
    nothing about the machine.
    """
    try:
        mmap.mmap(-1, _PROBE_BYTES).close()
    except OSError:
        return True
    return False


def exit_if_memory_exhausted(error: BaseException) -> None:
    """As ``exit_if_out_of_memory``, but only if even a small allocation fails now."""
    if is_out_of_memory(error) and is_memory_exhausted():
        _exit(error)


def _exit(error: BaseException) -> None:
    _LOG.error("out of memory: %s", str(error)[:200] or type(error).__name__)
    sys.stderr.flush()
    os._exit(EXIT_OUT_OF_MEMORY)


def return_large_blocks() -> None:
    """Returns blocks of some MiB to the operating system as soon as they are freed (mallopt).

    The C library would keep them, in each thread's heap, as soon as the first such block was freed.
    Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        # The default if no threshold is set, once a large block was freed.
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BLOCK)


def release_freed_memory() -> None:
    """Returns freed heap memory to the operating system (malloc_trim).

    Graph compilers free hundreds of megabytes that the C library would keep until the process
    ends. Does nothing where the C library is not glibc.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class OomWatch:
    """Whether the kernel's OOM killer has ended a process since the watch began.

    Compares the OOM killer's counts of the process's cgroup; of the machine, where the cgroup has
    no count (the root of cgroup version 2).

    Args:
        pid: a process; "self" = this one. Its children are in the same cgroup.
        root: folder that has ``proc`` and the mount points of cgroups.
    """

    def __init__(self, pid: int | str = "self", root: Path = machine.ROOT) -> None:
        self._root = root
        self._cgroups = machine.Cgroups(root, pid)
        self._before = self._counts()

    def killed(self) -> bool | None:
        """Whether it has; None = unknown."""
        cgroup, everywhere = (
            after > before if before is not None and after is not None else None
            for before, after in zip(self._before, self._counts(), strict=True)
        )
        if cgroup is None:
            return everywhere
        # A process that was moved to another cgroup is counted there.
        return None if everywhere and not cgroup else cgroup

    def memory(self) -> machine.Memory:
        """The memory that the process may use."""
        return machine.memory(self._root, self._cgroups)

    def _counts(self) -> tuple[int | None, int | None]:
        return self._cgroups.oom_kills(), machine.oom_kills_of_machine(self._root)
