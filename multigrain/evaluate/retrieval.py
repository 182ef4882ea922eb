"""Retrieval metrics, as the field defines them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def average_precision(ranks: Sequence[int] | NDArray[np.int64], positives: int) -> float:
    """Trapezoidal average precision of one query (the Holidays benchmark's definition).

    With p0 and p1 the precision before and after each hit::

        AP = sum_k (p0_k + p1_k) / (2 * positives),  p0 = k / r (1 if r = 0),  p1 = (k+1) / (r+1)

    It is lower than the usual AP: one positive at rank r gives 1 for r = 0, else 1 / (2 (r + 1)).

    Args:
        ranks: ranks of the positives found, counted from 0, ascending.
        positives: how many there are, found or not.
    """
    rank = np.asarray(ranks, np.float64)
    found = np.arange(len(rank))
    before = np.divide(found, rank, out=np.ones_like(rank), where=rank > 0)
    after = (found + 1) / (rank + 1)
    return float((before + after).sum() / (2 * positives))


def normalised(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1 (x / (|x| + 1e-6), the published code's form)."""
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    result: NDArray[np.float32] = (embedding / (length + 1e-6)).astype(np.float32)
    return result


def ranks_of(
    queries: NDArray[np.float32],
    database: NDArray[np.float32],
    positive: NDArray[np.int64],
    present: NDArray[np.bool_],
    block: int = 256,
) -> NDArray[np.int64]:
    """Rank of each query's one positive in the database, by inner product.

    Args:
        queries: (Q, C), normalised.
        database: (N, C), normalised.
        positive: (Q,) row of the database.
        present: (N,) rows that take part.
        block: queries compared at a time, to bound the memory.

    Returns:
        (Q,) counted from 0: the rows that are more similar, and the equally similar ones of a
        smaller index.
    """
    ranks = np.empty(len(queries), np.int64)
    rows = np.arange(len(database))
    # Summed in float64 and rounded to float32: equal pictures are equally similar, whatever the
    # shape of the product, and so for any number of workers.
    columns = database.astype(np.float64).T
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        similarity = (queries[part].astype(np.float64) @ columns).astype(np.float32)
        target = positive[part, None]
        own = np.take_along_axis(similarity, target, axis=1)
        ahead = (similarity > own) | ((similarity == own) & (rows < target))
        ranks[part] = (ahead & present).sum(axis=1)
    return ranks
