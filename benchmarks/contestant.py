"""Programs that are timed against each other by turns, each in a process of its own.

A contestant is a module with ``main`` that calls :func:`serve`: it says ``@ready`` when it is
warm, and then takes steps when it is asked to. So two of them never compute at the same time,
and what the machine does meanwhile hits both alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

MARK = "@"
MIB = 2**20


@dataclass(frozen=True)
class Turn:
    """What a contestant did in one turn.

    Attributes:
        seconds: wall time of each step.
        refreshed: for each step, the layers whose curvature was renewed.
        peak_mib: the process's largest resident memory so far.
        parts: seconds by part of the work, where that was asked for.
        bytes: exact sizes by name.
    """

    seconds: list[float]
    refreshed: list[int] = field(default_factory=list)
    peak_mib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def serve(take: Callable[[int, bool], Turn]) -> None:
    """Answers on standard output until standard input ends.

    Args:
        take: called with the number of steps, and whether the parts are wanted.
    """
    print(f"{MARK}ready", flush=True)
    for line in sys.stdin:
        steps, parts = json.loads(line)
        print(MARK + json.dumps(asdict(take(steps, parts))), flush=True)


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / MIB
    raise OSError("/proc/self/status names no VmHWM")


class Contestant:
    """The other end of :func:`serve`.

    Args:
        module: what to run, as ``python -m``.
        arguments: its command line.
        python: interpreter; this one if not given.
        environment: variables over those of this process.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        python: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = " ".join((module.rpartition(".")[2], *arguments))
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        self._read()

    def turn(self, steps: int, *, parts: bool = False) -> Turn:
        """Lets it take some steps.

        Raises:
            RuntimeError: if it has ended; what it said is on standard error.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([steps, parts]) + "\n")
        self._process.stdin.flush()
        return Turn(**json.loads(self._read()))

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _read(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).strip()
        raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")


def median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1000
