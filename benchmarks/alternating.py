"""Times programs alternately, each in its own process.

A program is a module whose ``main`` calls :func:`serve`: it prints ``@ready`` after its warm-up and
then takes steps on request. Two programs never compute at the same time, and other load on the
machine affects both alike.
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
class Measurement:
    """The result of some steps.

    Attributes:
        seconds: wall time of each step.
        refreshed: for each step, the number of layers whose curvature was refreshed.
        peak_mib: largest resident memory of the process so far.
        parts: seconds by part of the work, if requested.
        bytes: sizes of the state by name.
    """

    seconds: list[float]
    refreshed: list[int] = field(default_factory=list)
    peak_mib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def serve(take: Callable[[int, bool], Measurement]) -> None:
    """Answers requests from standard input on standard output until it is closed.

    Args:
        take: gets the number of steps and whether to measure the parts.
    """
    print(f"{MARK}ready", flush=True)
    for line in sys.stdin:
        steps, parts = json.loads(line)
        print(MARK + json.dumps(asdict(take(steps, parts))), flush=True)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / MIB
    raise OSError("/proc/self/status has no VmHWM")


class BenchmarkProcess:
    """Starts a program that calls :func:`serve` and requests steps from it.

    Args:
        module: run as ``python -m``.
        arguments: command-line arguments.
        python: interpreter; default: this one.
        environment: variables added to those of this process.
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

    def measure(self, steps: int, *, parts: bool = False) -> Measurement:
        """Runs some steps.

        Raises:
            RuntimeError: if the process has exited. Its output is on standard error.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([steps, parts]) + "\n")
        self._process.stdin.flush()
        return Measurement(**json.loads(self._read()))

    def __enter__(self) -> BenchmarkProcess:
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
        raise RuntimeError(f"{self.name} exited with code {self._process.wait()}")


def median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1000
