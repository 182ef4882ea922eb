"""Retrieval benchmarks: rankings of all workers, their metrics, and the files they write."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.data.benchmarks import Benchmark
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.search import BLOCK, Hits, Search
from multigrain.events.records import EvaluationRecord
from multigrain.storage import open_text_to_write
from multigrain.text import stored_path

MAX_RANKS = 100
"""Most ranks of positives stored per query; metrics are computed from all of them."""

HEADER = ("query", "group", "scored", "positives", "ap", "in_top4", "first", "ranks")
_TOP = 4
_COLUMNS = 6  # scored, average precision (two parts), first, positives in the top 4, positives


def average_precision(ranks: Sequence[int] | NDArray[np.int64], positives: int) -> float:
    """Computes the trapezoidal average precision of one query (as defined by Holidays).

    With p0 and p1 the precision before and after each hit::

        AP = sum_k (p0_k + p1_k) / (2 * positives),  p0 = k / r (1 if r = 0),  p1 = (k+1) / (r+1)

    It is lower than the usual AP: one positive at rank r gives 1 for r = 0, else 1 / (2 (r + 1)).

    Args:
        ranks: ranks of the positives found, counted from 0, ascending.
        positives: number of positives, found or not.
    """
    rank = np.asarray(ranks, np.float64)
    found = np.arange(len(rank))
    before = np.divide(found, rank, out=np.ones_like(rank), where=rank > 0)
    after = (found + 1) / (rank + 1)
    return float((before + after).sum() / (2 * positives))


@dataclass(frozen=True)
class BenchmarkResult:
    """Rankings and their metrics, by the benchmark's own protocol.

    Unreadable images count in no metric.

    Args:
        benchmark: images and queries.
        ranking: result of each query.
        present: (N,), whether each image was readable.
        transform: preprocessing of the images; see ``EvaluationSpec``.
    """

    benchmark: Benchmark
    ranking: Ranking
    present: NDArray[np.bool_]
    transform: str = "crop"

    @property
    def images(self) -> int:
        """Number of readable images, queries included."""
        return int(self.present.sum())

    @property
    def queries(self) -> int:
        """Number of scored queries."""
        return int(self.ranking.scored.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """The task's metrics, means over the queries:

        - "holidays": ``holidays_map``, "copydays": ``copydays_map``, mean average precision
          (trapezoidal);
        - "ukb": ``ukb_recall4``, images of the query's object among the first four, itself
          included: 0 to 4;
        - "groups": ``groups_map`` likewise, and ``groups_recall1``, the fraction of queries whose
          first image belongs to their group.

        Raises:
            MultigrainError: DATASET, if no query could be scored.
        """
        scored = self.ranking.scored
        if not scored.any():
            raise MultigrainError(
                ErrorKind.DATASET,
                f"no query in {self.benchmark.folder.root} could be scored: a query and at least "
                "one other image of its group must be readable; check the files",
            )
        task = self.benchmark.task
        if task == "ukb":
            return {"ukb_recall4": float(self.ranking.in_top4[scored].mean())}
        metrics = {f"{task}_map": float(self.ranking.precision[scored].mean())}
        if task == "groups":
            found = self.ranking.ranks[scored, 0] == 0
            metrics["groups_recall1"] = float(found.mean())
        return metrics


@dataclass(frozen=True)
class Ranking:
    """Results of all queries.

    Args:
        scored: (Q,), whether the query and at least one of its positives were readable.
        precision: (Q,), average precision, trapezoidal.
        first: (Q,), index of the image ranked first.
        in_top4: (Q,), number of positives among the first four.
        positives: (Q,), number of readable positives in the database.
        ranks: (Q, at most MAX_RANKS), ranks of the positives from 0, ascending; -1 as padding.
    """

    scored: NDArray[np.bool_]
    precision: NDArray[np.float64]
    first: NDArray[np.int64]
    in_top4: NDArray[np.int64]
    positives: NDArray[np.int64]
    ranks: NDArray[np.int64]


@dataclass
class Ranker:
    """Ranks a benchmark's images for each of its queries, sharded across the workers.

    Args:
        benchmark: images and queries.
        embeddings: (N, C), normalized embeddings of the images.
        present: (N,), whether each image was readable.
        block: number of similarities in memory at a time.
    """

    benchmark: Benchmark
    embeddings: NDArray[np.float32]
    present: NDArray[np.bool_]
    block: int = BLOCK
    _search: Search = field(init=False, repr=False)

    def __post_init__(self) -> None:
        benchmark = self.benchmark
        database = benchmark.database & self.present
        self._search = Search(self.embeddings, benchmark.folder.labels, database, self.block)

    def rank(
        self,
        all_reduce: AllReduce,
        *,
        rank: int = 0,
        world: int = 1,
        alive: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Ranking | None:
        """Ranks the images for every query. Collective.

        Args:
            all_reduce: sums over the workers.
            rank, world: this worker takes every ``world``-th block of queries.
            alive: called after each block.
            should_stop: called before each block; true interrupts the ranking.

        Returns:
            None if any worker was interrupted.
        """
        queries, labels = self.benchmark.queries, self.benchmark.folder.labels
        kept = min(MAX_RANKS, self._search.most_positives)
        table = np.zeros((len(queries), _COLUMNS + kept), np.float32)
        step = self._search.queries_at_once
        stopped = False
        for start in range(rank * step, len(queries), world * step):
            if stopped := should_stop():
                break
            positions = np.arange(start, min(start + step, len(queries)))
            positions = positions[self.present[queries[positions]]]
            images = queries[positions]
            own = None if self.benchmark.keeps_self else images
            found = self._search.find(self.embeddings[images], labels[images], own)
            for position, hits in zip(positions.tolist(), found, strict=True):
                _fill_row(table[position], hits)
            alive()
        if all_reduce.any(stopped):
            return None
        return _ranking(all_reduce.sum(table).astype(np.float64))


def _fill_row(row: NDArray[np.float32], hits: Hits) -> None:
    """Fills a query's row of the table; leaves it zero if the query has no positives."""
    positives = len(hits.ranks)
    if not positives:
        return
    precision = average_precision(hits.ranks, positives)
    row[:3] = 1.0, precision, precision - float(np.float32(precision))
    row[3:_COLUMNS] = hits.first, (hits.ranks < _TOP).sum(), positives
    kept = hits.ranks[: len(row) - _COLUMNS]
    row[_COLUMNS : _COLUMNS + len(kept)] = kept + 1  # 0 is padding


def _ranking(table: NDArray[np.float64]) -> Ranking:
    first, in_top4, positives = table[:, 3:_COLUMNS].astype(np.int64).T
    return Ranking(
        scored=table[:, 0] > 0,
        # Workers exchange float32: the sum of two keeps the precision's float64 digits.
        precision=table[:, 1] + table[:, 2],
        first=first,
        in_top4=in_top4,
        positives=positives,
        ranks=table[:, _COLUMNS:].astype(np.int64) - 1,
    )


def write_benchmark(
    results: Path, record: EvaluationRecord, result: BenchmarkResult, gem_p: float
) -> None:
    """Writes ``<task>.json`` and ``<task>.csv``.

    The CSV file has a row per query: its file and group; whether it was scored (it and a positive
    were readable); the number of positives; average precision; the number of positives among the
    first four; the file ranked first; the ranks, from 0, of the first hundred positives.

    Raises:
        OSError: if they cannot be written.
    """
    benchmark = result.benchmark
    body = {
        "task": benchmark.task,
        "metrics": result.metrics,
        "note": benchmark.note,
        "whole_benchmark": benchmark.whole,
        "groups": benchmark.groups,
        "queries": len(benchmark.queries),
        "queries_scored": result.queries,
        "database": int((benchmark.database & result.present).sum()),
        "images": result.images,
        "unreadable": len(benchmark) - result.images,
        "ignored": benchmark.ignored,
        "transform": result.transform,
        # JSON has no infinity.
        "gem_p": gem_p if math.isfinite(gem_p) else "Infinity",
    }
    evaluation = {
        name: value
        for name, value in asdict(record).items()
        if name in ("step", "epoch", "seconds", "resolution")
    }
    text = json.dumps({**body, **evaluation}, indent=1)
    with open_text_to_write(results / f"{benchmark.task}.json") as file:
        file.write(text + "\n")
    with open_text_to_write(results / f"{benchmark.task}.csv") as file:
        csv.writer(file).writerows(_rows(result))


def _rows(result: BenchmarkResult) -> Iterable[list[object]]:
    yield list(HEADER)
    folder, ranking = result.benchmark.folder, result.ranking
    for number, query in enumerate(result.benchmark.queries.tolist()):
        row: list[object] = [stored_path(folder.paths[query]), folder.classes[folder.labels[query]]]
        if not ranking.scored[number]:
            yield [*row, 0, "", "", "", "", ""]
            continue
        ranks = ranking.ranks[number]
        yield [
            *row,
            1,
            int(ranking.positives[number]),
            f"{ranking.precision[number]:.6f}",
            int(ranking.in_top4[number]),
            stored_path(folder.paths[int(ranking.first[number])]),
            " ".join(str(rank) for rank in ranks[ranks >= 0].tolist()),
        ]
