"""The images of a benchmark ranked for each of its queries, by all workers together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from multigrain.data.benchmarks import Benchmark
from multigrain.evaluate.gather import Gather
from multigrain.evaluate.precision import average_precision
from multigrain.evaluate.search import BLOCK, Hits, Search

MAX_RANKS = 100
"""Ranks of positives that are kept of a query at most; its figures are of all of them."""

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

    Args:
        benchmark: what is ranked for which queries.
        embeddings: (N, C) of its images, normalised.
        present: (N,) which of them there are.
        block: similarities held at a time.
    """

    benchmark: Benchmark
    embeddings: NDArray[np.float32]
    present: NDArray[np.bool_]
    block: int = BLOCK
    _search: Search = field(init=False, repr=False)

    def __post_init__(self) -> None:
        benchmark = self.benchmark
        takes_part = benchmark.database & self.present
        self._search = Search(self.embeddings, benchmark.folder.labels, takes_part, self.block)

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
                _enter(table[position], hits)
            alive()
        if gather.any(stopped):
            return None
        return _ranking(gather.sum(table).astype(np.float64))


def _enter(line: NDArray[np.float32], hits: Hits) -> None:
    """Fills a query's line of the table; leaves it zero where there is nothing to find."""
    positives = len(hits.ranks)
    if not positives:
        return
    precision = average_precision(hits.ranks, positives)
    line[:3] = 1.0, precision, precision - float(np.float32(precision))
    line[3:_COLUMNS] = hits.first, (hits.ranks < _TOP).sum(), positives
    kept = hits.ranks[: len(line) - _COLUMNS]
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
