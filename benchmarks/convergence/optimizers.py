"""Epochs to a target accuracy: THOR against SGD with momentum.

``python -m benchmarks.convergence.optimizers --out DIR [--dataset digits]``; results in ``DIR``
are not computed again.

The protocol, fixed before the first run of the series:

* Classification alone. The same network, batches, data order, start weights and seeds for both.
* Both optimizers have the same number of candidates (``candidates.py``), each with its own
  schedule: how soon the rate falls decides how soon the target is reached. All are trained once on
  an inner split of the training images; the best ``FINALISTS`` of each optimizer with the
  ``FURTHER_SEEDS``. The one with the fewest runs that never reach the target is taken, at equal
  numbers the one with the fewest epochs to it on the mean, then with the smaller loss.
* With what is chosen for each, ``FINAL_SEEDS`` runs on all training images, accuracies on the
  held-out ones. Then the same with the other finalists, to see what hangs on the choice.
* Accuracy is taken after every step from the second epoch on (of the glyphs: every third), until
  the target is reached, and at the end of every epoch: with five steps an epoch whole epochs are
  too coarse. It is that with BatchNorm's statistics of training images under the weights of that
  moment: the running values are those of the last ten or so steps, two epochs here, and hide what
  fast weights have learned.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from benchmarks.convergence.candidates import CANDIDATES, LOOK_EVERY, TARGET, Candidate
from benchmarks.convergence.command import Command
from benchmarks.convergence.journal import Journal, Record
from benchmarks.convergence.restart import constants
from benchmarks.convergence.run import Point, Run, merged
from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.subset import Split
from multigrain.specs.resolve import resolve_training
from multigrain.specs.training import TrainingSpec

BATCH = 256
KINDS = ("momentum", "thor")
FINALISTS = 2
# A run on the glyphs takes three times as long.
FURTHER_SEEDS = {"digits": (1, 2), "glyphs": ()}
FINAL_SEEDS = {"digits": (0, 1, 2, 3, 4), "glyphs": (0, 1, 2)}
CLASSIFICATION = {
    "objective": {"classification_weight": 1.0, "instance_loss": "none"},
    "augmentation": {"repeats": 1},
}


@dataclass
class Runs:
    """Runs of one command, those with the same constants in the same compiled graphs."""

    compiled: dict[str, tuple[Run, float]] = field(default_factory=dict)

    def begin(self, spec: TrainingSpec, split: Split) -> tuple[Run, float]:
        """A run before its first step, and the processor time that compiling took."""
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
        """Top-1 of the held-out images."""
        return TARGET[self.dataset.name]

    def complete(
        self, journal: Journal, split: Split, wanted: Sequence[tuple[Candidate, int]]
    ) -> bool:
        """Trains every candidate with its seed; see :meth:`Journal.complete`."""
        jobs: list[tuple[str, Callable[[], Record]]] = [
            (f"{candidate.name} seed {seed}", partial(self.trained, split, candidate, seed))
            for candidate, seed in wanted
        ]
        return self.command.complete(journal, jobs)

    def trained(self, split: Split, candidate: Candidate, seed: int) -> Record:
        """One run's figures."""
        few = self.command.shortened(split)
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
                        "batch_size": min(BATCH, len(few.train)),
                        "length_factor": 1,
                    },
                    "devices": {"count": 1},
                    "seed": seed,
                },
            )
        )
        run, compiling = self.runs.begin(spec, few)
        length = run.steps_per_epoch
        points: list[Point] = []

        def due(step: int) -> bool:
            there = any(point.top1 >= self.target for point in points)
            often = step > length and step % LOOK_EVERY[self.dataset.name] == 0
            return step % length == 0 or (often and not there)

        for point in run.points(due):
            points.append(point)  # noqa: PERF402 - one by one: due() reads them
        return {
            "candidate": candidate.name,
            "kind": candidate.kind,
            "seed": seed,
            "steps_per_epoch": length,
            "compiling": compiling,
            "points": [asdict(point) for point in points],
        }


def reached(record: Record, target: float) -> dict[str, Any] | None:
    """The first point at which the held-out images are recognized that well; None: never."""
    return next((point for point in record["points"] if point["top1"] >= target), None)


def order(records: Sequence[Record], target: float) -> tuple[int, float, float]:
    """Of a candidate's runs; smaller is better."""
    found = [reached(record, target) for record in records]
    epochs = [point["epoch"] for point in found if point]
    return (
        len(records) - len(epochs),
        statistics.mean(epochs) if epochs else float("inf"),
        statistics.mean(record["points"][-1]["held_out_loss"] for record in records),
    )


def ranked(records: Iterable[Record], kind: str, target: float) -> list[str]:
    """Names of an optimizer's candidates, those with the most runs first, then the best."""
    runs: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == kind:
            runs.setdefault(record["candidate"], []).append(record)
    return sorted(runs, key=lambda name: (-len(runs[name]), order(runs[name], target)))


def main() -> None:
    command = Command.parsed(__doc__)
    for dataset in command.datasets:
        measure(Series(command, dataset, Runs()))


def measure(series: Series) -> None:
    """Chooses, trains with what is chosen, and prints both tables."""
    command, name, target = series.command, series.dataset.name, series.target
    split = series.dataset.split(command.out)
    inner = series.dataset.inner(split.train)
    # The first two are one of each optimizer.
    listed = CANDIDATES[name][: 2 if command.quick else None]
    candidates = {candidate.name: candidate for candidate in listed}
    tuning = command.journal(f"target-{name}-tuning")
    if not series.complete(tuning, inner, [(candidate, 0) for candidate in listed]):
        print("not all candidates are tried: call again")
        return
    first = [record for record in tuning.records().values() if record["seed"] == 0]
    finalists = [
        candidates[best]
        for best in alternating([ranked(first, kind, target)[:FINALISTS] for kind in KINDS])
    ]
    more = () if command.quick else FURTHER_SEEDS[name]
    further = [(candidate, seed) for candidate in finalists for seed in more]
    if not series.complete(tuning, inner, further):
        print("not all finalists are tried: call again")
        return
    tried = list(tuning.records().values())
    print(f"\n{name}, inner split, target {target:.1%}\n{table(tried, target)}")
    final = command.journal(f"target-{name}")
    seeds = FINAL_SEEDS[name][: 1 if command.quick else None]
    for place, title in enumerate(("chosen",) if command.quick else ("chosen", "second choice")):
        best = [ranked(tried, kind, target)[place] for kind in KINDS]
        jobs = [(candidates[one], seed) for seed in seeds for one in best]
        if not series.complete(final, split, jobs):
            print("not all final runs are there: call again")
            return
        runs = [record for record in final.records().values() if record["candidate"] in best]
        print(f"\n{name}, held-out images, {title}\n{table(runs, target)}")


def alternating(lists: Sequence[Sequence[str]]) -> list[str]:
    """One of each in turn, so that a series that is cut short has as many of both."""
    return [name for names in zip(*lists, strict=True) for name in names]


def table(records: Sequence[Record], target: float) -> str:
    """Every candidate, the best of each optimizer first."""
    rows = [
        "| candidate | target after epochs | mean | CPU seconds to it | compiling "
        "| top-1 at the end | renewed | looked at |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        rows += [
            _row([record for record in records if record["candidate"] == name], target)
            for name in ranked(records, kind, target)
        ]
    return "\n".join(rows)


def _row(runs: Sequence[Record], target: float) -> str:
    hits = [reached(run, target) for run in runs]
    found = [hit for hit in hits if hit]
    ends = [run["points"][-1] for run in runs]

    def mean(name: str, points: Sequence[dict[str, Any]], factor: float = 1.0) -> float:
        return factor * float(statistics.mean(point[name] for point in points))

    cells = [
        runs[0]["candidate"],
        ", ".join(f"{hit['epoch']:.2g}" if hit else "never" for hit in hits),
        f"{mean('epoch', found):.2f}" if len(found) == len(runs) else "",
        f"{mean('cpu', found):.0f}" if found else "",
        f"{mean('compiling', runs):.0f}",
        ", ".join(f"{100 * end['top1']:.1f}" for end in ends),
        f"{mean('refreshes', ends):.0f}",
        f"{mean('checks', ends):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
