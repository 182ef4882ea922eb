"""Cgroups for tests, where this process may create some; elsewhere the test is skipped."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from multigrain.machine import Cgroups

_CPU = ("cpu.cfs_quota_us", "cpu.max")
_MEMORY = ("memory.limit_in_bytes", "memory.max")


@dataclass(frozen=True)
class RealCgroup:
    """A cgroup of version 1 or 2 below this process's.

    Attributes:
        cpu: folder that limits its CPU time.
        memory: folder that limits its memory.
    """

    cpu: Path
    memory: Path

    @property
    def folders(self) -> list[Path]:
        return list({self.cpu, self.memory})

    @property
    def program(self) -> str:
        """Python code by which a process moves into it."""
        return "import os\n" + "\n".join(
            f"open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
            for folder in self.folders
        )

    def limit_cpu(self, cpus: float) -> None:
        quota = round(cpus * 100_000)
        self._write(self.cpu, {"cpu.cfs_quota_us": f"{quota}", "cpu.max": f"{quota} 100000"})

    def limit_memory(self, size: int) -> None:
        self._write(self.memory, dict.fromkeys(_MEMORY, str(size)))

    def _write(self, folder: Path, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            if (folder / name).exists():
                (folder / name).write_text(text)


@contextlib.contextmanager
def real_cgroup() -> Iterator[RealCgroup]:
    """A new one, which is removed afterwards: its processes must have ended."""
    ours = Cgroups()
    name = f"multigrain-test-{uuid.uuid4().hex[:8]}"
    made: list[Path] = []
    try:
        for parents, files in ((ours._cpu, _CPU), (ours._memory, _MEMORY)):
            parent = next(iter(parents or ours._v2), None)
            if parent is None:
                pytest.skip("no cgroups are mounted here")
            try:
                (parent / name).mkdir(exist_ok=True)
            except OSError as error:
                pytest.skip(f"this process may not create a cgroup: {error}")
            made.append(parent / name)
            if not any((parent / name / file).exists() for file in files):
                pytest.skip(f"{files[1]} is not delegated to this process")
        yield RealCgroup(*made)
    finally:
        for folder in dict.fromkeys(made):
            _remove(folder)


def _remove(folder: Path) -> None:
    """A process that has just ended may still be in it."""
    deadline = time.monotonic() + 10
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
