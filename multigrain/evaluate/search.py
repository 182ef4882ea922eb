"""Exact nearest-neighbor search by inner product, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**23
"""Number of similarities in memory at a time: 32 MiB."""

_ROWS = 4096  # database rows per matrix product
_MAX_COUNTED = 200  # positives up to which counting better-ranked columns beats sorting (measured)


def l2_normalize(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalizes rows to length 1, as x / (|x| + 1e-6) like the published code."""
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    result: NDArray[np.float32] = (embedding / (length + 1e-6)).astype(np.float32)
    return result


@dataclass(frozen=True)
class Hits:
    """Result of one query.

    Args:
        ranks: ranks of the images of its group, from 0, ascending; empty if there are none.
        first: index of the image ranked first; -1 if there is none.
    """

    ranks: NDArray[np.int64]
    first: int


class Search:
    """Ranks the images of a database for queries that should find those of their own group.

    Similarity is the inner product of normalized vectors, which orders like their distance.
    Products are summed in float64 and rounded to float32, so that equal images are equally
    similar regardless of the summation order of the linear algebra library. Ties are broken by
    index.

    Args:
        vectors: (N, C), normalized and finite.
        groups: (N,), the group of each, at least 0.
        present: (N,), which of them are in the database.
        block: number of similarities in memory at a time.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        groups: NDArray[np.integer],
        present: NDArray[np.bool_],
        block: int = BLOCK,
    ) -> None:
        self._candidates = np.flatnonzero(present)
        self._vectors = vectors if present.all() else vectors[self._candidates]
        self._block = block
        of = np.asarray(groups)[self._candidates]
        self._members = np.argsort(of, kind="stable")
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(of, minlength=1))))

    @property
    def queries_at_once(self) -> int:
        """Number of queries per block."""
        return max(1, self._block // max(1, len(self._candidates)))

    @property
    def most_positives(self) -> int:
        """Size of the largest group."""
        return int(np.diff(self._starts).max())

    def find(
        self,
        queries: NDArray[np.float32],
        groups: NDArray[np.integer],
        own: NDArray[np.int64] | None = None,
    ) -> Iterator[Hits]:
        """Yields the result of each query, in order.

        Args:
            queries: (Q, C), normalized and finite.
            groups: (Q,), the group of each.
            own: (Q,), index of each query in the database, if it must not find itself. It is
                excluded by its index, not by its similarity, which a duplicate shares.
        """
        for start in range(0, len(queries), self.queries_at_once):
            part = slice(start, start + self.queries_at_once)
            places: list[int | None] = [None] * len(groups[part])
            if own is not None:
                places = [self._place(index) for index in own[part].tolist()]
            similarity = self._similarity(queries[part])
            for row, group, place in zip(similarity, groups[part].tolist(), places, strict=True):
                yield self._hits(row, group, place)

    def _place(self, index: int) -> int | None:
        place = int(np.searchsorted(self._candidates, index))
        there = place < len(self._candidates) and self._candidates[place] == index
        return place if there else None

    def _similarity(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        left = queries.astype(np.float64)
        result = np.empty((len(queries), len(self._vectors)), np.float32)
        for start in range(0, len(self._vectors), _ROWS):
            part = slice(start, start + _ROWS)
            result[:, part] = left @ self._vectors[part].astype(np.float64).T
        return result

    def _hits(self, similarity: NDArray[np.float32], group: int, own: int | None) -> Hits:
        positives = np.zeros(0, np.int64)
        if 0 <= group < len(self._starts) - 1:
            positives = self._members[self._starts[group] : self._starts[group + 1]]
        others = len(similarity)
        if own is not None:
            similarity[own] = -np.inf  # behind all others
            positives = positives[positives != own]
            others -= 1
        ranks = _ranks(similarity, positives)
        # argmax breaks ties by index, like the ranks.
        return Hits(ranks, int(self._candidates[similarity.argmax()]) if others else -1)


def _ranks(similarity: NDArray[np.float32], positives: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the ranks of some columns among all, ascending: greater first, ties by index."""
    if len(positives) > _MAX_COUNTED:
        place = np.empty(len(similarity), np.int64)
        place[np.argsort(-similarity, kind="stable")] = np.arange(len(similarity))
        return np.sort(place[positives])
    counts = [
        np.count_nonzero(similarity > similarity[column])
        + np.count_nonzero(similarity[:column] == similarity[column])
        for column in positives.tolist()
    ]
    return np.sort(np.array(counts, np.int64))
