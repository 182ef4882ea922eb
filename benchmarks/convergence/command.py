"""Command line of the convergence benchmarks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import mindspore
import numpy as np

from benchmarks.convergence.results import Record, Results
from benchmarks.datasets.dataset import DATASETS, Dataset
from benchmarks.results import parser as parser_of
from multigrain.data.held_out import Split
from multigrain.data.image_folder import ImageFolder

SEEDS = (0, 1, 2)
QUICK_IMAGES = 60


@dataclass(frozen=True)
class Command:
    """Options of the command line.

    Args:
        out: folder of datasets and results. An interrupted series is resumed.
        quick: smoke test with a few images and one epoch.
        part: (k, n): only every n-th run from the k-th.
        minutes: no run starts later than this.
        datasets: the datasets to use.
        options: for ``benchmarks.results.Report``.
    """

    out: Path
    quick: bool = False
    part: tuple[int, int] = (0, 1)
    minutes: float = float("inf")
    datasets: tuple[Dataset, ...] = ()
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    @classmethod
    def parsed(cls, name: str) -> Command:
        """Parses the command line of a benchmark and sets MindSpore to one CPU thread."""
        parser = parser_of(name)
        parser.add_argument(
            "--out", type=Path, required=True,
            help="folder of datasets and results; existing results are kept",
        )  # fmt: skip
        parser.add_argument("--quick", action="store_true", help="smoke test with a few images")
        parser.add_argument("--part", default="0/1", help="k/n: only every n-th run from the k-th")
        parser.add_argument(
            "--minutes", type=float, default=float("inf"), help="start no run later"
        )
        parser.add_argument("--dataset", choices=DATASETS, help="only this one")
        arguments = parser.parse_args()
        one_thread()
        k, n = (int(number) for number in arguments.part.split("/"))
        names = (
            [arguments.dataset]
            if arguments.dataset
            else list(DATASETS)[: 1 if arguments.quick else None]
        )
        datasets = tuple(DATASETS[name] for name in names)
        return cls(arguments.out, arguments.quick, (k, n), arguments.minutes, datasets, arguments)

    def results(self, name: str) -> Results:
        """The results of a series; quick runs have their own file."""
        return Results(self.out / f"{name}{'-quick' if self.quick else ''}.jsonl")

    def seeds(self) -> tuple[int, ...]:
        """Seeds of the repetitions."""
        return SEEDS[:1] if self.quick else SEEDS

    def epochs(self, whole: int) -> int:
        """Number of epochs to train."""
        return 1 if self.quick else whole

    def shortened(self, split: Split) -> Split:
        """The split, or a few images of each half for a smoke test."""
        if not self.quick:
            return split
        return Split(*(_few(folder) for folder in (split.train, split.held_out)))

    def complete(self, results: Results, runs: Iterable[tuple[str, Callable[[], Record]]]) -> bool:
        """See :meth:`Results.complete`."""
        return results.complete(runs, part=self.part, minutes=self.minutes)


def one_thread() -> None:
    """Limits computation to one thread, so that times are comparable and one core stays free."""
    os.environ["OMP_NUM_THREADS"] = "1"
    mindspore.set_device("CPU")
    mindspore.set_context(runtime_num_threads=1)


def _few(folder: ImageFolder) -> ImageFolder:
    return folder.subset(np.linspace(0, len(folder) - 1, QUICK_IMAGES).astype(np.intp))
