"""The images of a benchmark ranked for each of its queries: exactly, a block at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from multigrain.data.benchmarks import Benchmark
from multigrain.evaluate.gather import Gather
from multigrain.evaluate.retrieval import average_precision

MAX_RANKS = 100
"""Ranks of positives that are kept of a query at most; its figures are of all of them."""

_BLOCK = 2**23  # similarities held at a time: 32 MiB
_ROWS = 4096  # rows of the database multiplied at a time
_TOP = 4
_COLUMNS = 6  # scored, average precision (two parts), first found, found in the top 4, positives


@dataclass(frozen=True)
class Ranking:
    """What each query found.

    Args:
        scored: (Q,) whether the query and a positive of it were readable; else it has no figures.
        precision: (Q,) average precision, trapezoidal.
        first: (Q,) index of the image ranked first.
        in_top4: (Q,) positives among the first four.
        positives: (Q,) readable images of the database that it should find.
        ranks: (Q, at most MAX_RANKS) ranks of the positives from 0, ascending; -1: no more.
    """

    scored: NDArray[np.bool_]
    precision: NDArray[np.float64]
    first: NDArray[np.int64]
    in_top4: NDArray[np.int64]
    positives: NDArray[np.int64]
    ranks: NDArray[np.int64]


@dataclass
class Ranker:
    """Ranks for a share of the queries, and puts the workers' shares together.

    Similarity is the inner product of normalised vectors, which orders as their distance does.
    Products are summed in float64 and rounded to float32, so that equal images are equally
    similar whatever order a linear algebra library sums in; ties are broken by index. A query is
    taken out of its own ranking by index, not by its similarity, which a duplicate shares.

    Args:
        benchmark: what is ranked for which queries.
        embeddings: (N, C) of its images, normalised.
        present: (N,) which of them there are.
        block: similarities held at a time.
    """

    benchmark: Benchmark
    embeddings: NDArray[np.float32]
    present: NDArray[np.bool_]
    block: int = _BLOCK
    _candidates: NDArray[np.int64] = field(init=False, repr=False)
    _database: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._candidates = np.flatnonzero(self.benchmark.database & self.present)
        whole = len(self._candidates) == len(self.embeddings)
        self._database = self.embeddings if whole else self.embeddings[self._candidates]

    def rank(
        self,
        gather: Gather,
        *,
        rank: int = 0,
        world: int = 1,
        alive: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Ranking | None:
        """Every query's ranking. Collective.

        Args:
            gather: puts the workers' results together.
            rank, world: this worker takes every ``world``-th block of queries.
            alive: called after each block.
            should_stop: asked before each block.

        Returns:
            None if any worker was asked to stop.
        """
        queries = self.benchmark.queries
        table = np.zeros((len(queries), _COLUMNS + self._most_positives()), np.float32)
        step = max(1, self.block // max(1, len(self._candidates)))
        stopped = False
        for start in range(rank * step, len(queries), world * step):
            if stopped := should_stop():
                break
            positions = np.arange(start, min(start + step, len(queries)))
            positions = positions[self.present[queries[positions]]]
            similarity = self._similarity(queries[positions])
            for position, row in zip(positions.tolist(), similarity, strict=True):
                self._score(table[position], int(queries[position]), row)
            alive()
        if gather.any(stopped):
            return None
        return _ranking(gather.sum(table).astype(np.float64))

    def _most_positives(self) -> int:
        sizes = np.bincount(self.benchmark.folder.labels[self._candidates], minlength=1)
        return min(MAX_RANKS, int(sizes.max()))

    def _similarity(self, queries: NDArray[np.int64]) -> NDArray[np.float32]:
        left = self.embeddings[queries].astype(np.float64)
        result = np.empty((len(queries), len(self._database)), np.float32)
        for start in range(0, len(self._database), _ROWS):
            part = slice(start, start + _ROWS)
            result[:, part] = left @ self._database[part].astype(np.float64).T
        return result

    def _score(
        self, line: NDArray[np.float32], query: int, similarity: NDArray[np.float32]
    ) -> None:
        """Fills a query's line of the table; leaves it zero where there is nothing to find."""
        ranked = self._candidates[np.argsort(-similarity, kind="stable")]
        if not self.benchmark.keeps_self:
            ranked = ranked[ranked != query]
        labels = self.benchmark.folder.labels
        hits = np.flatnonzero(labels[ranked] == labels[query])
        if not len(hits):
            return
        precision = average_precision(hits, len(hits))
        line[:3] = 1.0, precision, precision - float(np.float32(precision))
        line[3:_COLUMNS] = ranked[0], (hits < _TOP).sum(), len(hits)
        kept = hits[: len(line) - _COLUMNS]
        line[_COLUMNS : _COLUMNS + len(kept)] = kept + 1  # 0: no more


def _ranking(table: NDArray[np.float64]) -> Ranking:
    first, in_top4, positives = table[:, 3:_COLUMNS].astype(np.int64).T
    return Ranking(
        scored=table[:, 0] > 0,
        # Two float32 hold a figure that one would round: the workers exchange float32.
        precision=table[:, 1] + table[:, 2],
        first=first,
        in_top4=in_top4,
        positives=positives,
        ranks=table[:, _COLUMNS:].astype(np.int64) - 1,
    )
