"""Average precision, as the field of retrieval defines it."""

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
