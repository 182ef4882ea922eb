"""Results of benchmarks: one JSON file for each benchmark and processor.

A benchmark opens a :class:`Report`, adds what it measured, and returns ``report.finish()``::

    def main() -> int:
        parser = results.parser("wire")
        options = parser.parse_args()
        report = results.Report("wire", options)
        report.compare("encode", 0.33, over=0.8, reference="the JSON library", unit="us", at_most=1)
        table = report.table("Messages", ("encode, us", "decode, us"))
        table.row("loss", 6.2, 9.3)
        table.missing("tensor", "MindSpore is not installed")
        return report.finish()

The file in ``benchmarks/measured/PROCESSOR/`` names the machine, the versions and what other
programs used of it. ``docs/benchmarks.md`` is made from these files by ``make docs``.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict

from benchmarks.index import BENCHMARKS, Benchmark
from multigrain.machine import available_cpus

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "benchmarks" / "measured"
BUSY: Final = 0.1
"""Share of the cores that other programs may use before and during a measurement."""
MISSED: Final = 3
"""Exit code of a benchmark that missed a goal; one that fails has another."""

_PACKAGES: Final = ("grpcio", "openvino", "onnxruntime", "mindspore", "torch", "numpy", "pillow")
# Those that decide which kernels are used, oldest first.
_INSTRUCTION_SETS: Final = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)
_LOAD_SECONDS: Final = 1.0
Value = float | int | str


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Machine(_Model):
    """Attributes:
    processor: the name that the processor gives, and its family and model.
    instruction_sets: of those that the kernels of the runtimes choose by.
    cores: that this process may use.
    memory_gib: of the machine; 0 = not recorded.
    """

    processor: str
    instruction_sets: tuple[str, ...]
    cores: int
    memory_gib: float = 0.0

    def __str__(self) -> str:
        names = (one.upper().replace("_", " ") for one in self.instruction_sets)
        sets = ", ".join(names) or "no vector instructions"
        return f"{self.processor}, {self.cores} core{'s' if self.cores != 1 else ''}, {sets}"

    @property
    def folder(self) -> str:
        """Name of the folder of its results."""
        name = f"{self.processor} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Load(_Model):
    """Cores that other programs used, and the load average of a minute, before the start.

    The load average of a machine that has just become idle is still high, so the cores decide.
    """

    cores_before: float
    load_average: float
    cores_during: float = 0.0


class Comparison(_Model):
    """A measured value, and what it is compared with.

    Attributes:
        measured: medians are of ``rounds``.
        over: the same quantity of ``reference``, from the same run.
        ratio: measured / over; the median of the rounds' ratios.
        at_most, at_least: goal for the ratio, or for the value without a reference.
        missing: why there is no value.
    """

    what: str
    unit: str = ""
    measured: int | float | None = None
    rounds: tuple[float, ...] = ()
    reference: str = ""
    over: float | None = None
    ratio: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    missing: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        found = self.measured if self.ratio is None else self.ratio
        if found is None or (self.at_most is None and self.at_least is None):
            return None
        return not (
            (self.at_most is not None and found > self.at_most)
            or (self.at_least is not None and found < self.at_least)
        )


class Row(_Model):
    """Attributes:
    cells: one for each column, or none if it could not be measured.
    missing: the reason.
    reached: False if the row missed the benchmark's goal.
    """

    name: str
    cells: tuple[Value, ...] = ()
    missing: str = ""
    reached: bool | None = None


class Table(_Model):
    """Attributes:
    first: heading of the names of the rows.
    """

    title: str
    first: str = ""
    columns: tuple[str, ...]
    rows: list[Row] = []

    def row(self, name: str, *cells: Value, reached: bool | None = None) -> None:
        """Adds a row and prints it."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{name}: {len(cells)} cells, {len(self.columns)} columns")
        rounded = tuple(_rounded(cell) if isinstance(cell, float) else cell for cell in cells)
        self.rows.append(Row(name=name, cells=rounded, reached=reached))
        goal = "  MISSED" if reached is False else ""
        shown = zip(self.columns, cells, strict=True)
        print(f"{name}: " + "; ".join(f"{c} {number(v)}" for c, v in shown) + goal, flush=True)

    def missing(self, name: str, reason: str) -> None:
        """Adds a row that says why there is no value."""
        self.rows.append(Row(name=name, missing=reason))
        print(f"{name}: not measured: {reason}", flush=True)


class Result(_Model):
    """What one run of a benchmark found on one machine.

    Attributes:
        commit: of the project; empty = not recorded.
        seconds: that the run took; 0 = not recorded.
        load: None = not recorded.
        copied: for a result that was not written by a benchmark: where it comes from.
    """

    benchmark: str
    command: str
    time: str
    seconds: float = 0.0
    machine: Machine
    versions: dict[str, str] = {}
    commit: str = ""
    load: Load | None = None
    comparisons: list[Comparison] = []
    tables: list[Table] = []
    notes: list[str] = []
    copied: str = ""

    @property
    def busy(self) -> str:
        """What other programs used, if it was too much; else empty."""
        if self.load is None:
            return ""
        used = max(self.load.cores_before, self.load.cores_during)
        if used <= BUSY * self.machine.cores:
            return ""
        return f"other programs used {used:.1f} of {self.machine.cores} cores"

    @property
    def missed(self) -> int:
        """Number of goals that were missed."""
        goals = [one.reached for one in self.comparisons]
        goals += [row.reached for table in self.tables for row in table.rows]
        return goals.count(False)

    @property
    def measured(self) -> int:
        """Number of comparisons and rows with a value."""
        reasons = [one.missing for one in self.comparisons]
        reasons += [row.missing for table in self.tables for row in table.rows]
        return reasons.count("")


def parser(name: str) -> argparse.ArgumentParser:
    """A parser whose help says what the benchmark compares; for :class:`Report`."""
    about = BENCHMARKS[name]
    made = argparse.ArgumentParser(
        prog=f"python -m {about.module}",
        description=f"{about.question} Compares {about.compares}. About {about.duration}.",
    )
    made.add_argument(
        "--results", type=Path, default=FOLDER, metavar="FOLDER",
        help="where the JSON is written; default benchmarks/measured",
    )  # fmt: skip
    if about.data:
        made.add_argument(
            "--data", type=Path, metavar="FOLDER",
            help="keeps the models that are measured; default a temporary folder",
        )  # fmt: skip
    made.add_argument(
        "--replace", action="store_true",
        help="replace a stored result even if this one is of a busy machine or has fewer values",
    )  # fmt: skip
    return made


@contextmanager
def data_folder(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of ``--data``, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.data or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


class Report:
    """Collects what a benchmark measures. Opening it measures the load for a second.

    Args:
        name: of the benchmark, as in ``benchmarks.index``.
        options: parsed by :func:`parser`.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.about: Benchmark = BENCHMARKS[name]
        self._folder: Path = options.results
        self._replace: bool = options.replace
        average = round(os.getloadavg()[0], 2)
        before = _others(_LOAD_SECONDS)
        self.result = Result(
            benchmark=name,
            command=" ".join((f"python -m {self.about.module}", *_shown(sys.argv[1:]))),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=this_machine(),
            versions=versions(),
            commit=commit(),
            load=Load(cores_before=before, load_average=average),
        )
        print(self.result.machine, flush=True)
        if self.result.busy:
            print(f"BUSY: {self.result.busy}", flush=True)
        self._start = time.monotonic()
        self._used = _machine_seconds() - _own_seconds()

    def compare(
        self,
        what: str,
        measured: float | Sequence[float],
        *,
        over: float | Sequence[float] | None = None,
        reference: str = "",
        unit: str = "",
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> Comparison:
        """Adds a value, or the values of several rounds, and prints it.

        Args:
            what: was measured.
            measured: in ``unit``.
            over: of the reference, as many as ``measured``.
            reference: what it is.
            unit: such as "ms".
            at_most: goal for the ratio, or for the value if there is no reference.
            at_least: as ``at_most``.
        """
        rounds, overs, ratios = _rounds(measured), _rounds(over), []
        if over is not None:
            if not reference:
                raise ValueError(f"{what}: name the reference")
            ratios = [a / b for a, b in zip(rounds, overs, strict=True)]
        found = Comparison(
            what=what, unit=unit, measured=statistics.median(rounds),
            rounds=tuple(rounds) if len(rounds) > 1 else (), reference=reference,
            over=statistics.median(overs) if overs else None,
            ratio=_rounded(statistics.median(ratios)) if ratios else None,
            at_most=at_most, at_least=at_least,
        )  # fmt: skip
        self.result.comparisons.append(found)
        text = f"{what}: {number(0 if found.measured is None else found.measured)} {unit}".rstrip()
        if found.ratio is not None and found.over is not None:
            text += f" = {found.ratio:.3g} x {number(found.over)} ({reference})"
        if goal := goal_text(found):
            text += f", goal {goal}{' MISSED' if found.reached is False else ''}"
        print(text, flush=True)
        return found

    def missing(self, what: str, reason: str) -> None:
        """Adds a comparison that says why there is no value."""
        self.result.comparisons.append(Comparison(what=what, missing=reason))
        print(f"{what}: not measured: {reason}", flush=True)

    def table(self, title: str, columns: Sequence[str], *, first: str = "") -> Table:
        """Adds an empty table; ``first`` is the heading of the names of its rows."""
        table = Table(title=title, columns=tuple(columns), first=first)
        self.result.tables.append(table)
        return table

    def note(self, text: str) -> None:
        """Adds a sentence that is shown below the tables."""
        self.result.notes.append(text)
        print(text, flush=True)

    def version(self, package: str, text: str) -> None:
        """Adds the version of a package in another environment."""
        self.result.versions[package] = text

    def finish(self) -> int:
        """Writes the JSON; returns the exit code, ``MISSED`` if a goal was."""
        result = self.result
        seconds = time.monotonic() - self._start
        result.seconds = round(seconds, 1)
        others = (_machine_seconds() - _own_seconds() - self._used) / max(seconds, 1e-9)
        assert result.load is not None
        result.load.cores_during = round(max(0.0, others), 2)
        if result.busy:
            print(f"BUSY: {result.busy}")
        path = self._folder / result.machine.folder / f"{result.benchmark}.json"
        if reason := "" if self._replace else _better(path, result):
            print(f"{path} is kept: {reason} (--replace replaces it)")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(result.model_dump_json(indent=1, exclude_defaults=True) + "\n")
            print(f"written: {path}")
        return MISSED if result.missed else 0


def stored(folder: Path = FOLDER) -> list[Result]:
    """All stored results, by benchmark and machine."""
    found = [Result.model_validate_json(path.read_text()) for path in folder.glob("*/*.json")]
    return sorted(found, key=lambda one: (one.benchmark, str(one.machine)))


def number(value: Value) -> str:
    """Three significant digits; whole numbers and text as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"


def goal_text(found: Comparison) -> str:
    """The goal, as text."""
    parts = []
    if found.at_least is not None:
        parts.append(f"≥ {found.at_least:g}")
    if found.at_most is not None:
        parts.append(f"≤ {found.at_most:g}")
    return ", ".join(parts)


def this_machine() -> Machine:
    """The machine that this process runs on."""
    cpuinfo: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        cpuinfo.setdefault(key.strip(), value.strip())
    name = re.sub(r"\s+", " ", cpuinfo.get("model name", "")) or platform.machine()
    if "cpu family" in cpuinfo:
        name += f" (family {cpuinfo['cpu family']}, model {cpuinfo.get('model', '?')})"
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    return Machine(
        processor=name,
        instruction_sets=tuple(one for one in _INSTRUCTION_SETS if one in flags),
        cores=available_cpus(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The project's commit, with a plus sign if files differ from it; empty outside of git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        return ""
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", ":/", f":!{FOLDER.relative_to(ROOT)}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _rounds(values: float | Sequence[float] | None) -> list[float]:
    if values is None:
        return []
    listed = [values] if isinstance(values, (int, float)) else values
    return [_rounded(value) for value in listed]


def _shown(arguments: Sequence[str]) -> list[str]:
    """Arguments that change what is measured, without the folders of this machine."""
    text = re.sub(r"--(results|data)[ =]\S+|--replace", "", " ".join(arguments))
    return [Path(one).name if one.startswith("/") else one for one in text.split()]


def _rounded(value: float) -> float:
    """Six significant digits, which is more than a measurement has; counts stay whole."""
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _better(path: Path, result: Result) -> str:
    """Why a stored result should be kept; empty if it should not."""
    if not path.is_file():
        return ""
    old = Result.model_validate_json(path.read_text())
    if result.busy and not old.busy and old.load is not None:
        return "it is of an idle machine"
    if result.measured < old.measured:
        return f"it has {old.measured} values, this run {result.measured}"
    return ""


def _machine_seconds() -> float:
    """CPU seconds of all programs, without interrupts, which belong to nobody."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))


def _own_seconds() -> float:
    """CPU seconds of this process and of its children that have exited."""
    mine = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in mine)


def _others(seconds: float) -> float:
    """Cores that other programs use."""
    before, start = _machine_seconds() - _own_seconds(), time.monotonic()
    time.sleep(seconds)
    used = _machine_seconds() - _own_seconds() - before
    return round(max(0.0, used / (time.monotonic() - start)), 2)
