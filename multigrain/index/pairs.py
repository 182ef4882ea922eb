"""All pairs of similar vectors, exactly, with a fraction of the work of computing all products.

Each vector x is projected on the leading principal components V of a sample, and the length of
what is left is appended: y = (Vx, |x - V'Vx|). By the Cauchy-Schwarz inequality, the inner product
of two such rows is at least that of the vectors themselves, so a pair below the threshold by its y
is below it by its x and can be discarded. The products of the pairs that remain are computed in
double precision from the whole vectors. The result does not depend on the number of components.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from multigrain.machine import cpus

STRIPE = 4096
"""Rows per stripe: the unit of progress, and of what a killed search repeats."""

_TILE = 1024  # rows and columns of a matrix product; 4 MiB of products stay in the cache
_GATHER = 1 << 22  # numbers of candidates' vectors in memory at a time
_PILOT = 2048  # sampled rows
_COMPONENTS = (16, 32, 64, 128, 256)
_FLOAT32 = 2.0**-24  # unit roundoff
# Of the costs that choose the number of components, in multiplications of a matrix product:
_PER_PAIR = 12.0  # comparing a product with the threshold (measured)
_PER_CANDIDATE = 60.0  # a candidate, per dimension: two rows from memory, in double precision


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows.

    Args:
        first, second: (P,) row numbers, first < second.
        similarity: (P,) inner products.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)

    @staticmethod
    def join(parts: list[Pairs]) -> Pairs:
        """Joins lists of pairs, in their order."""
        if not parts:
            none = np.empty(0, np.int64)
            return Pairs(none, none, np.empty(0, np.float64))
        return Pairs(
            np.concatenate([part.first for part in parts]),
            np.concatenate([part.second for part in parts]),
            np.concatenate([part.similarity for part in parts]),
        )


class PairSearch:
    """Finds all pairs of rows whose inner product is at least a threshold.

    Args:
        vectors: (N, C) float32, finite; a memory-mapped file may be larger than the memory, as
            only (N, components + 1) numbers are kept.
        threshold: of the inner products; above 0.
        components: number of principal components, 0 to compute all products of whole vectors;
            None to choose by a sample.
        threads: number of threads; None for one per available processor.

    Raises:
        ValueError: for a threshold that is not above 0, or vectors that are not finite.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        threshold: float,
        *,
        components: int | None = None,
        threads: int | None = None,
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold is {threshold}: it must be above 0")
        self._vectors = vectors
        self._threshold = threshold
        self._threads = threads or cpus().available
        sample = _sample(vectors)
        basis = _principal_components(sample)
        self.components = (
            _cheapest(sample, basis, threshold)
            if components is None
            else min(components, len(basis))
        )
        self._rows = self._project(basis[: self.components])
        largest = float(np.sqrt(max((_squared_lengths(self._rows).max(initial=0.0)), 1.0)))
        # Rounding to float32 and summing in float32 loses at most this much of a product.
        terms = self._rows.shape[1]
        error = (terms * _FLOAT32 / (1 - terms * _FLOAT32) + 3 * _FLOAT32) * largest**2
        self._bound = np.float32(threshold - error)

    @property
    def stripes(self) -> int:
        """Number of stripes. The work of a stripe decreases with its number."""
        return -(-len(self._vectors) // STRIPE)

    def fraction_done(self, stripes: int) -> float:
        """Returns the fraction of all pairs that the first stripes cover, 0 to 1."""
        total = len(self._vectors)
        left = max(0, total - stripes * STRIPE)
        return 1.0 - (left / total) ** 2 if total else 1.0

    def stripe(self, number: int) -> Pairs:
        """Finds the pairs whose first row is in a stripe, ordered by first and second row."""
        start, stop = number * STRIPE, min((number + 1) * STRIPE, len(self._vectors))
        tiles = [
            (row, min(row + _TILE, stop), column)
            for row in range(start, stop, _TILE)
            for column in range(row, len(self._vectors), _TILE)
        ]
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(self._threads) as pool:
            shares = [tiles[i :: self._threads] for i in range(self._threads)]
            found = Pairs.join(list(pool.map(self._find, shares)))
        order = np.lexsort((found.second, found.first))
        return Pairs(found.first[order], found.second[order], found.similarity[order])

    def all(self) -> Pairs:
        """Finds all pairs, ordered by first and second row."""
        return Pairs.join([self.stripe(number) for number in range(self.stripes)])

    def _project(self, basis: NDArray[np.float64]) -> NDArray[np.float32]:
        """The rows whose products bound those of the vectors: (N, components + 1)."""
        if not len(basis):
            _check_finite(self._vectors)
            return self._vectors
        rows = np.empty((len(self._vectors), len(basis) + 1), np.float32)
        for start in range(0, len(rows), STRIPE):
            part = self._vectors[start : start + STRIPE].astype(np.float64)
            projected = part @ basis.T
            rest = _squared_lengths(part) - _squared_lengths(projected)
            rows[start : start + STRIPE, :-1] = projected
            rows[start : start + STRIPE, -1] = np.sqrt(np.maximum(rest, 0.0))
        _check_finite(rows)
        return rows

    def _find(self, tiles: list[tuple[int, int, int]]) -> Pairs:
        """Finds the pairs of some tiles of all products, given by first and last row and column."""
        return Pairs.join(
            [
                pairs
                for first, second in self._candidates(tiles)
                for pairs in self._verify(first, second)
            ]
        )

    def _candidates(
        self, tiles: list[tuple[int, int, int]]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The pairs of each tile whose bound reaches the threshold."""
        products = np.empty((_TILE, _TILE), np.float32)
        above = np.empty((_TILE, _TILE), np.bool_)
        for row, stop, column in tiles:
            rows = self._rows[row:stop]
            columns = self._rows[column : column + _TILE]
            if rows.shape == columns.shape == (_TILE, rows.shape[1]):
                np.matmul(rows, columns.T, out=products)
                np.greater_equal(products, self._bound, out=above)
                found = np.flatnonzero(above)
            else:
                found = np.flatnonzero(rows @ columns.T >= self._bound)
            first, second = np.divmod(found, len(columns))
            first, second = first + row, second + column
            if row == column:
                upper = first < second
                first, second = first[upper], second[upper]
            yield first, second

    def _verify(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> Iterator[Pairs]:
        """Keeps the candidates whose vectors' product reaches the threshold."""
        at_once = max(1, _GATHER // max(1, self._vectors.shape[1]))
        for start in range(0, len(first), at_once):
            a, b = first[start : start + at_once], second[start : start + at_once]
            similarity = np.einsum(
                "nc,nc->n",
                self._vectors[a].astype(np.float64),
                self._vectors[b].astype(np.float64),
            )
            kept = similarity >= self._threshold
            if kept.any():
                yield Pairs(a[kept], b[kept], similarity[kept])


def _squared_lengths(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.einsum("nc,nc->n", rows, rows, dtype=np.float64)
    return result


def _check_finite(rows: NDArray[np.float32]) -> None:
    for start in range(0, len(rows), STRIPE):
        finite = np.isfinite(rows[start : start + STRIPE]).all(axis=1)
        if not finite.all():
            raise ValueError(f"vector {start + int(np.argmin(finite))} is not finite")


def _sample(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Random rows, the same each time, so that a resumed search continues with its components."""
    chosen = np.random.default_rng(0).permutation(len(vectors))[:_PILOT]
    return np.asarray(vectors[np.sort(chosen)], np.float64)


def _principal_components(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal directions (min(256, C), C), about by decreasing second moment of the sample.

    By subspace iteration from random directions (Halko, Martinsson and Tropp, 2011). The bound
    holds for any orthonormal directions; better ones leave fewer candidates.
    """
    sample = sample[np.isfinite(sample).all(axis=1)]
    size = sample.shape[1]
    directions = np.random.default_rng(1).standard_normal((size, min(max(_COMPONENTS), size)))
    for _ in range(3):
        directions, _ = np.linalg.qr(sample.T @ (sample @ directions))
    projected = sample @ directions
    _, rotation = np.linalg.eigh(projected.T @ projected)
    return np.ascontiguousarray((directions @ rotation[:, ::-1]).T)


def _cheapest(sample: NDArray[np.float64], basis: NDArray[np.float64], threshold: float) -> int:
    """The number of components that costs least on the sample; 0 if whole products do."""
    half = len(sample) // 2
    size = sample.shape[1]
    best, least = 0, size + _PER_PAIR
    if half == 0:
        return best
    for components in _COMPONENTS:
        if components >= size:
            break
        projected = sample @ basis[:components].T
        rest = np.sqrt(np.maximum(_squared_lengths(sample) - _squared_lengths(projected), 0.0))
        bound = projected[:half] @ projected[half:].T + np.outer(rest[:half], rest[half:])
        candidates = float((bound >= threshold).mean())
        cost = components + 1 + _PER_PAIR + candidates * _PER_CANDIDATE * size
        if cost < least:
            best, least = components, cost
    return best
