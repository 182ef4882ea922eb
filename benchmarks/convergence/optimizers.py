"""Epochs to a target accuracy of THOR and of SGD with momentum.

Results in the folder ``--out`` are not computed again.

The protocol was fixed before the first run:

* Classification only. Both optimizers use the same network, batches, data order, initial weights
  and seeds.
* Both have the same number of candidates (``candidates.py``), each with its own schedule, because
  the decay of the learning rate determines when the target is reached. All candidates are trained
  once on an inner split of the training images, the best ``FINALISTS`` of each optimizer also with
  the ``FURTHER_SEEDS``. The winner has the fewest runs that miss the target, then the lowest mean
  number of epochs, then the lowest loss.
* The winners are trained with ``FINAL_SEEDS`` on all training images and scored on the held-out
  ones. The other finalists follow, to show how much the choice matters.
* Accuracy is measured after every step from the second epoch on (glyphs: every third step) until
  the target is reached, and at the end of every epoch: with five steps per epoch, whole epochs are
  too coarse. It uses BatchNorm statistics of training images under the current weights: the running
  statistics average about ten steps, two epochs here, and lag behind fast changes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from benchmarks.convergence.candidates import CANDIDATES, LOOK_EVERY, TARGET, Candidate
from benchmarks.convergence.command import Command
from benchmarks.convergence.restart import constants
from benchmarks.convergence.results import Record, Results
from benchmarks.convergence.run import Point, Run, merged
from benchmarks.datasets.dataset import Dataset
from benchmarks.results import Report
from multigrain.data.held_out import Split
from multigrain.specs.resolve import resolve_training
from multigrain.specs.training import TrainingSpec

BATCH = 256
KINDS = ("momentum", "thor")
FINALISTS = 2
COLUMNS = (
    *("target after epochs", "mean", "CPU seconds to target", "compiling"),
    *("final top-1", "refreshes", "checks"),
)
# A run on the glyphs takes three times as long.
FURTHER_SEEDS = {"digits": (1, 2), "glyphs": ()}
FINAL_SEEDS = {"digits": (0, 1, 2, 3, 4), "glyphs": (0, 1, 2)}
CLASSIFICATION = {
    "objective": {"classification_weight": 1.0, "instance_loss": "none"},
    "augmentation": {"repeats": 1},
}


@dataclass
class Runs:
    """The runs of one command. Runs with equal constants share compiled graphs."""

    compiled: dict[str, tuple[Run, float]] = field(default_factory=dict)

    def begin(self, spec: TrainingSpec, split: Split) -> tuple[Run, float]:
        """A run before its first step, and the CPU seconds of compiling."""
        key = constants(spec)
        if key in self.compiled:
            self.compiled[key][0].restart(spec, split)
        else:
            run = Run(spec, split, recompute=True)
            self.compiled[key] = (run, run.compile())
        return self.compiled[key]


@dataclass(frozen=True)
class Series:
    """All runs on one dataset."""

    command: Command
    dataset: Dataset
    runs: Runs

    @property
    def target(self) -> float:
        """Target top-1 on the held-out images."""
        return TARGET[self.dataset.name]

    def complete(
        self, results: Results, split: Split, requested: Sequence[tuple[Candidate, int]]
    ) -> bool:
        """Trains every candidate with its seed; see :meth:`Results.complete`."""
        jobs: list[tuple[str, Callable[[], Record]]] = [
            (f"{candidate.name} seed {seed}", partial(self.train, split, candidate, seed))
            for candidate, seed in requested
        ]
        return self.command.complete(results, jobs)

    def train(self, split: Split, candidate: Candidate, seed: int) -> Record:
        """Trains one run and returns its record."""
        images = self.command.shortened(split)
        epochs = self.command.epochs(candidate.epochs)
        spec = resolve_training(
            merged(
                self.dataset.settings,
                CLASSIFICATION,
                candidate.settings,
                {
                    "dataset": {"train_path": str(split.train.root)},
                    "schedule": {
                        "epochs": epochs,
                        "batch_size": min(BATCH, len(images.train)),
                        "length_factor": 1,
                    },
                    "devices": {"count": 1},
                    "seed": seed,
                },
            )
        )
        run, compiling = self.runs.begin(spec, images)
        length = run.steps_per_epoch
        points: list[Point] = []

        def due(step: int) -> bool:
            done = any(point.top1 >= self.target for point in points)
            often = step > length and step % LOOK_EVERY[self.dataset.name] == 0
            return step % length == 0 or (often and not done)

        for point in run.points(due):
            points.append(point)  # noqa: PERF402 - due() reads the list
        return {
            "candidate": candidate.name,
            "kind": candidate.kind,
            "seed": seed,
            "steps_per_epoch": length,
            "compiling": compiling,
            "points": [asdict(point) for point in points],
        }


def reached(record: Record, target: float) -> dict[str, Any] | None:
    """The first point that reaches the target on the held-out images, or None."""
    return next((point for point in record["points"] if point["top1"] >= target), None)


def order(records: Sequence[Record], target: float) -> tuple[int, float, float]:
    """Sort key of a candidate's runs; smaller is better."""
    hits = [reached(record, target) for record in records]
    epochs = [point["epoch"] for point in hits if point]
    return (
        len(records) - len(epochs),
        statistics.mean(epochs) if epochs else float("inf"),
        statistics.mean(record["points"][-1]["held_out_loss"] for record in records),
    )


def ranked(records: Iterable[Record], kind: str, target: float) -> list[str]:
    """Names of an optimizer's candidates: those with the most runs first, then the best."""
    runs: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == kind:
            runs.setdefault(record["candidate"], []).append(record)
    return sorted(runs, key=lambda name: (-len(runs[name]), order(runs[name], target)))


def main() -> int:
    command = Command.parsed("convergence.optimizers")
    report = Report("convergence.optimizers", command.options)
    complete = [measure(report, Series(command, one, Runs())) for one in command.datasets]
    if not all(complete):
        print("some runs are missing: run again")
        return 0
    return report.finish()


def measure(report: Report, series: Series) -> bool:
    """Selects candidates, trains the winners and adds both tables; False if runs are missing."""
    command, name, target = series.command, series.dataset.name, series.target
    split = series.dataset.split(command.out)
    inner = series.dataset.inner(split.train)
    # The first two are one per optimizer.
    listed = CANDIDATES[name][: 2 if command.quick else None]
    candidates = {candidate.name: candidate for candidate in listed}
    tuning = command.results(f"target-{name}-tuning")
    if not series.complete(tuning, inner, [(candidate, 0) for candidate in listed]):
        return False
    first = [record for record in tuning.records().values() if record["seed"] == 0]
    finalists = [
        candidates[best]
        for best in alternating([ranked(first, kind, target)[:FINALISTS] for kind in KINDS])
    ]
    more = () if command.quick else FURTHER_SEEDS[name]
    further = [(candidate, seed) for candidate in finalists for seed in more]
    if not series.complete(tuning, inner, further):
        return False
    tuned = list(tuning.records().values())
    add_table(report, f"{name}, inner split, target {target:.1%}", tuned, target)
    final = command.results(f"target-{name}")
    seeds = FINAL_SEEDS[name][: 1 if command.quick else None]
    for place, title in enumerate(("chosen",) if command.quick else ("chosen", "second choice")):
        best = [ranked(tuned, kind, target)[place] for kind in KINDS]
        jobs = [(candidates[one], seed) for seed in seeds for one in best]
        if not series.complete(final, split, jobs):
            return False
        runs = [record for record in final.records().values() if record["candidate"] in best]
        add_table(report, f"{name}, held-out images, {title}, target {target:.1%}", runs, target)
    return True


def alternating(lists: Sequence[Sequence[str]]) -> list[str]:
    """Interleaves the lists, so that an interrupted series has equally many of each."""
    return [name for names in zip(*lists, strict=True) for name in names]


def add_table(report: Report, title: str, records: Sequence[Record], target: float) -> None:
    """Adds a table of all candidates, the best of each optimizer first."""
    table = report.table(title, COLUMNS, first="candidate")
    for name, *cells in rows(records, target):
        table.row(name, *cells)


def rows(records: Sequence[Record], target: float) -> list[list[str]]:
    """Cells of all candidates, the best of each optimizer first."""
    return [
        _row([record for record in records if record["candidate"] == name], target)
        for kind in KINDS
        for name in ranked(records, kind, target)
    ]


def _row(runs: Sequence[Record], target: float) -> list[str]:
    hits = [reached(run, target) for run in runs]
    found = [hit for hit in hits if hit]
    ends = [run["points"][-1] for run in runs]

    def mean(name: str, points: Sequence[dict[str, Any]], factor: float = 1.0) -> float:
        return factor * float(statistics.mean(point[name] for point in points))

    return [
        runs[0]["candidate"],
        ", ".join(f"{hit['epoch']:.2g}" if hit else "never" for hit in hits),
        f"{mean('epoch', found):.2f}" if len(found) == len(runs) else "",
        f"{mean('cpu', found):.0f}" if found else "",
        f"{mean('compiling', runs):.0f}",
        ", ".join(f"{100 * end['top1']:.1f}" for end in ends),
        f"{mean('refreshes', ends):.0f}",
        f"{mean('checks', ends):.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
