"""The command line that the measurements share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import mindspore
import numpy as np

from benchmarks.convergence.journal import Journal, Record
from benchmarks.datasets.dataset import DATASETS, Dataset
from benchmarks.datasets.subset import Split, subset
from multigrain.data.image_folder import ImageFolder

SEEDS = (0, 1, 2)
QUICK_IMAGES = 60


@dataclass(frozen=True)
class Command:
    """What was asked.

    Args:
        out: folder of the datasets and results; a series that was cut short goes on there.
        quick: only to see that everything runs: a few images, an epoch or two.
        part: (k, n): of every n runs only the k-th.
        minutes: no run is begun later than this.
        datasets: to run on.
    """

    out: Path
    quick: bool = False
    part: tuple[int, int] = (0, 1)
    minutes: float = float("inf")
    datasets: tuple[Dataset, ...] = ()

    @classmethod
    def parsed(cls, description: str | None) -> Command:
        """From the command line; sets MindSpore up for one CPU thread."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawTextHelpFormatter
        )
        parser.add_argument(
            "--out", type=Path, required=True,
            help="folder of datasets and results; results that are there are not computed again",
        )  # fmt: skip
        parser.add_argument("--quick", action="store_true", help="a few images, to try it out")
        parser.add_argument("--part", default="0/1", help="k/n: of every n runs only the k-th")
        parser.add_argument(
            "--minutes", type=float, default=float("inf"), help="begin no run later"
        )
        parser.add_argument("--dataset", choices=DATASETS, help="only this one")
        asked = parser.parse_args()
        one_thread()
        k, n = (int(number) for number in asked.part.split("/"))
        names = [asked.dataset] if asked.dataset else list(DATASETS)[: 1 if asked.quick else None]
        datasets = tuple(DATASETS[name] for name in names)
        return cls(asked.out, asked.quick, (k, n), asked.minutes, datasets)

    def journal(self, name: str) -> Journal:
        """The results of a series; those of quick runs are kept apart."""
        return Journal(self.out / f"{name}{'-quick' if self.quick else ''}.jsonl")

    def seeds(self) -> tuple[int, ...]:
        """Of the repetitions."""
        return SEEDS[:1] if self.quick else SEEDS

    def epochs(self, whole: int) -> int:
        """Epochs of a run that should have that many."""
        return 1 if self.quick else whole

    def shortened(self, split: Split) -> Split:
        """The split, or a few images of each side."""
        if not self.quick:
            return split
        return Split(*(_few(folder) for folder in (split.train, split.held_out)))

    def complete(self, journal: Journal, runs: Iterable[tuple[str, Callable[[], Record]]]) -> bool:
        """See :meth:`Journal.complete`."""
        return journal.complete(runs, part=self.part, minutes=self.minutes)


def one_thread() -> None:
    """One thread of computation, so that seconds can be compared and a core is left."""
    os.environ["OMP_NUM_THREADS"] = "1"
    mindspore.set_device("CPU")
    mindspore.set_context(runtime_num_threads=1)


def _few(folder: ImageFolder) -> ImageFolder:
    return subset(folder, np.linspace(0, len(folder) - 1, QUICK_IMAGES).astype(np.int64))
