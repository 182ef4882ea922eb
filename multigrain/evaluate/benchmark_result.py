"""Figures of a retrieval benchmark, by its own protocol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.data.benchmarks import Benchmark
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.ranking import Ranking


@dataclass(frozen=True)
class BenchmarkResult:
    """Figures and what they are made of. Unreadable images are in no figure, only counted.

    Args:
        benchmark: what was searched.
        ranking: what each query found.
        present: (N,) images that were readable.
        transform: how the images were prepared; see ``EvaluationSpec``.
    """

    benchmark: Benchmark
    ranking: Ranking
    present: NDArray[np.bool_]
    transform: str = "crop"

    @property
    def images(self) -> int:
        """Images that took part, queries included."""
        return int(self.present.sum())

    @property
    def queries(self) -> int:
        """Queries that were scored."""
        return int(self.ranking.scored.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """By task, all means over the queries:

        - "holidays": ``holidays_map``, "copydays": ``copydays_map``, mean average precision
          (trapezoidal);
        - "ukb": ``ukb_recall4``, images of the query's object among the first four, itself
          included: 0 to 4;
        - "groups": ``groups_map`` likewise, and ``groups_recall1``, the share of queries whose
          first image is of their group.

        Raises:
            MultigrainError: DATASET if no query could be scored.
        """
        scored = self.ranking.scored
        if not scored.any():
            raise MultigrainError(
                ErrorKind.DATASET,
                f"no query of {self.benchmark.folder.root} is readable together with an image that "
                "it should find: check the files",
            )
        task = self.benchmark.task
        if task == "ukb":
            return {"ukb_recall4": float(self.ranking.in_top4[scored].mean())}
        metrics = {f"{task}_map": float(self.ranking.precision[scored].mean())}
        if task == "groups":
            found = self.ranking.ranks[scored, 0] == 0
            metrics["groups_recall1"] = float(found.mean())
        return metrics
