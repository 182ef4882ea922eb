"""CPUs and memory that this process may use: its affinity and the limits of its cgroups.

A container sees every CPU and all memory of its host, except in its cgroups: os.cpu_count,
os.process_cpu_count, psutil, OpenMP and ONNX Runtime do not look there. Everything that counts
cores or memory asks this module.

Reads cgroup v1, v2 and both side by side. A limit of an ancestor also holds for its descendants,
so the smallest one counts. Ancestors outside a cgroup namespace cannot be seen.

Sources: cgroups(7), proc(5), the kernel's Documentation/admin-guide/cgroup-v1/memory.rst,
cgroup-v2.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

ROOT: Final = Path("/")

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that numerical libraries read when they are loaded."""

_DEFAULT_PERIOD: Final = 100_000  # of cpu.max, in microseconds
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Cpus:
    """CPUs for this process.

    Attributes:
        machine: CPUs of the machine.
        affinity: CPUs that it may run on: taskset, a cpuset.
        quota: CPU time per second that its cgroups allow; None = no limit.
    """

    machine: int
    affinity: int
    quota: float | None = None

    @property
    def available(self) -> int:
        """Threads that can compute at the same time, at least 1.

        A fraction counts as a CPU: 1.5 allows 2 threads. With one thread less, the fraction would
        never be used; with one more, the kernel only makes them wait.
        """
        if self.quota is None:
            return self.affinity
        return max(1, min(self.affinity, math.ceil(self.quota)))

    @property
    def limited(self) -> bool:
        """Whether there are fewer than the machine has."""
        return self.available < self.machine

    def __str__(self) -> str:
        text = f"{self.available} CPU" + ("s" if self.available != 1 else "")
        if not self.limited:
            return text
        reason = "CPU affinity"
        if self.quota is not None and self.quota < self.affinity:
            reason = f"cgroup quota of {self.quota:.3g}"
        return f"{text} ({reason}; the machine has {self.machine})"


@dataclass(frozen=True)
class Memory:
    """Memory for this process and the others in its cgroup, in bytes.

    Attributes:
        machine: memory of the machine.
        limit: what its cgroups allow; None = no limit below the machine's memory.
        used: of ``total``, without what the kernel can free at once.
    """

    machine: int
    limit: int | None = None
    used: int = 0

    @property
    def total(self) -> int:
        """Memory that can be used at most."""
        return self.machine if self.limit is None else self.limit

    def describe_limit(self) -> str:
        """What ends a process that needs more, as a sentence without a period."""
        machine = format_size(self.machine)
        if self.limit is None:
            return f"the machine has {machine}"
        return f"its cgroup may use {format_size(self.limit)} of the machine's {machine}"

    def __str__(self) -> str:
        if self.limit is None:
            return f"{format_size(self.machine)} of memory"
        return (
            f"{format_size(self.limit)} of memory (cgroup limit; the machine has "
            f"{format_size(self.machine)})"
        )


@dataclass(frozen=True)
class _Mount:
    root: str
    folder: str


@dataclass(frozen=True)
class _MemoryLimit:
    """Bytes, of a cgroup whose usage and free file pages two files state."""

    size: int
    folder: Path
    current: str
    cache: str

    def used(self) -> int | None:
        used = _positive(self.folder / self.current)
        if used is None:
            return None
        # File pages that were not used lately: the kernel frees them first.
        return max(0, used - (_named_number(self.folder / "memory.stat", self.cache) or 0))


class Cgroups:
    """The cgroups of a process, as it or this process sees them.

    Args:
        root: folder that has ``proc`` and the mount points.
        pid: of the process; "self" = this one.
    """

    def __init__(self, root: Path = ROOT, pid: int | str = "self") -> None:
        # A controller belongs to one hierarchy: a v1 hierarchy by its name, or that of v2 ("").
        self._v2 = _folders(root, pid, "")
        self._cpu = _folders(root, pid, "cpu")
        self._memory = _hierarchical(_folders(root, pid, "memory"))

    def cpu_quota(self) -> float | None:
        """CPUs; None = no limit."""
        quotas = [_quota_v2(folder) for folder in self._v2]
        quotas += [_quota_v1(folder) for folder in self._cpu]
        return min((quota for quota in quotas if quota is not None), default=None)

    def memory_limit(self) -> int | None:
        """Bytes; None = no limit. Version 1 states "no limit" as a very large one."""
        smallest = self._smallest_memory_limit()
        return smallest.size if smallest is not None else None

    def memory_used(self) -> int | None:
        """Bytes in the cgroup with the smallest limit; None = unknown."""
        smallest = self._smallest_memory_limit()
        return smallest.used() if smallest is not None else None

    def oom_kills(self) -> int | None:
        """Processes of its cgroup that the kernel's OOM killer has ended; None = not counted.

        All of its kills count: at the cgroup's limit, at one of an ancestor, and of the machine.
        """
        for folder in self._memory[:1]:
            counter = _named_number(folder / "memory.oom_control", "oom_kill")
            if counter is not None:
                return counter
        for folder in self._v2[:1]:
            return _named_number(folder / "memory.events", "oom_kill")
        return None

    def _smallest_memory_limit(self) -> _MemoryLimit | None:
        return min(self._memory_limits(), key=lambda limit: limit.size, default=None)

    def _memory_limits(self) -> Iterator[_MemoryLimit]:
        for folder in self._v2:
            for name in ("memory.max", "memory.high"):
                size = _positive(folder / name)
                if size is not None:
                    yield _MemoryLimit(size, folder, "memory.current", "inactive_file")
        for folder in self._memory:
            sizes = (
                _positive(folder / "memory.limit_in_bytes"),
                # Includes ancestors that cannot be seen.
                _named_number(folder / "memory.stat", "hierarchical_memory_limit"),
            )
            for size in filter(None, sizes):
                yield _MemoryLimit(size, folder, "memory.usage_in_bytes", "total_inactive_file")


def cpus(root: Path = ROOT) -> Cpus:
    """CPUs of the machine, and those that this process may use.

    Args:
        root: folder that has ``proc`` and the mount points of cgroups.
    """
    machine = os.cpu_count() or 1
    # macOS has no affinity.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return Cpus(machine, affinity, Cgroups(root).cpu_quota())


def available_cpus(root: Path = ROOT) -> int:
    """CPUs that this process may use: see :class:`Cpus`."""
    return cpus(root).available


def memory(root: Path = ROOT, cgroups: Cgroups | None = None) -> Memory:
    """Memory of the machine, and what a process may use.

    Args:
        root: folder that has ``proc`` and the mount points of cgroups.
        cgroups: of the process; None = this one.
    """
    machine = psutil.virtual_memory()
    cgroups = cgroups or Cgroups(root)
    limit = cgroups.memory_limit()
    if limit is None or limit >= machine.total:
        return Memory(machine.total, None, machine.total - machine.available)
    used = cgroups.memory_used()
    return Memory(machine.total, limit, min(limit, used or 0))


def available_memory(root: Path = ROOT) -> int:
    """Bytes of memory that this process may use at most: see :class:`Memory`."""
    return memory(root).total


def format_size(size: int) -> str:
    """Bytes as "24 GiB", "1.5 GiB" or "130 MiB"."""
    if size >= _GIB:
        return f"{size / _GIB:.1f}".removesuffix(".0") + " GiB"
    return f"{size / _MIB:.0f} MiB"


def oom_kills_of_machine(root: Path = ROOT) -> int | None:
    """Processes that the OOM killer has ended since the machine started, those of containers that
    reached their own limit included; None where the kernel does not count them (before 4.13)."""
    return _named_number(root / "proc/vmstat", "oom_kill")


def _folders(root: Path, pid: int | str, controller: str) -> list[Path]:
    """Folders of a process's cgroup and its visible ancestors in a hierarchy, innermost first."""
    path = _path_in(_lines(root / f"proc/{pid}/cgroup"), controller)
    if path is None:
        return []
    mounts = list(_mounts(_lines(root / "proc/self/mountinfo"), controller))
    found: list[Path] = []
    for mount in mounts:
        below = _below(path, mount.root)
        if below is not None:
            found += _existing(root / mount.folder.lstrip("/"), below)
    if not found and mounts:
        # A container whose mount does not fit its path: the mount shows its own cgroup.
        found = _existing(root / mounts[0].folder.lstrip("/"), ())
    # The same hierarchy may be mounted twice; the order keeps the innermost one first.
    return list(dict.fromkeys(found))


def _path_in(lines: list[str], controller: str) -> str | None:
    """The path of a cgroup in /proc/PID/cgroup: "4:memory:/a/b", or "0::/a/b" for version 2."""
    for line in lines:
        parts = line.split(":", 2)
        if (
            len(parts) == 3
            and parts[2].startswith("/")
            and controller in parts[1].split(",")
            and (controller or parts[0] == "0")
        ):
            return parts[2].removesuffix(" (deleted)")
    return None


def _mounts(lines: list[str], controller: str) -> Iterator[_Mount]:
    """Mounts of a hierarchy in /proc/self/mountinfo (proc(5))."""
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(kind) < 3:
            continue
        if kind[0] == ("cgroup" if controller else "cgroup2") and (
            not controller or controller in kind[2].split(",")
        ):
            yield _Mount(_unescape(fields[3]), _unescape(fields[4]))


def _below(path: str, root: str) -> tuple[str, ...] | None:
    """Names from the root of a mount down to a cgroup; None if the mount does not contain it.

    In a cgroup namespace both may begin with "..", once for each level above the namespace.
    """
    path_up, path_names = _levels(path)
    root_up, root_names = _levels(root)
    if root_up > path_up and not root_names:
        # The mount begins above the namespace: the names between are unknown.
        return ()
    if root_up != path_up or path_names[: len(root_names)] != root_names:
        return None
    return path_names[len(root_names) :]


def _levels(path: str) -> tuple[int, tuple[str, ...]]:
    parts = PurePosixPath(path).parts[1:]
    up = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    return up, parts[up:]


def _existing(mount: Path, names: tuple[str, ...]) -> list[Path]:
    """Folders from ``names`` below a mount up to the mount, as far as they exist."""
    folders = [mount.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]
    return [folder for folder in folders if folder.is_dir()]


def _hierarchical(folders: list[Path]) -> list[Path]:
    """Version 1: an ancestor without memory.use_hierarchy does not count its descendants."""
    kept = folders[:1]
    for folder in folders[1:]:
        if _text(folder / "memory.use_hierarchy") == "0":
            break
        kept.append(folder)
    return kept


def _quota_v2(folder: Path) -> float | None:
    fields = _text(folder / "cpu.max").split()
    quota = _whole(fields[0]) if fields else None
    period = _whole(fields[1]) if len(fields) > 1 else _DEFAULT_PERIOD
    return quota / period if quota and period else None


def _quota_v1(folder: Path) -> float | None:
    quota = _positive(folder / "cpu.cfs_quota_us")  # -1 = no limit
    period = _positive(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _positive(path: Path) -> int | None:
    """A file's number if it is positive; None for "max", -1, and what is no number."""
    return _whole(_text(path)) or None


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def _named_number(path: Path, name: str) -> int | None:
    """The number behind a name, in a file with one pair a line."""
    for line in _lines(path):
        fields = line.split()
        if len(fields) == 2 and fields[0] == name:
            return _whole(fields[1])
    return None


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    """A file's text; "" if it cannot be read."""
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError:
        return ""


def _unescape(text: str) -> str:
    """mountinfo has blanks, tabs, newlines and backslashes as octal numbers."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
