"""Mean and covariance of descriptors that come in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.whitening.descriptor import extended


class Moments:
    """First and second moments of u = [e; 1] / ||[e; 1]||, in float64.

    Batches are put together by the pairwise update of Chan, Golub and LeVeque (1983), which
    never subtracts large sums: ``M += M_b + d d^T n n_b / (n + n_b)``, d the difference of means.

    Args:
        embedding_size: C; the moments have C + 1 dimensions.
    """

    def __init__(self, embedding_size: int) -> None:
        size = embedding_size + 1
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(size)
        self._scatter: NDArray[np.float64] = np.zeros((size, size))

    def add(self, embedding: NDArray[Any]) -> None:
        """Takes embeddings (n, C), not normalised.

        Raises:
            MultigrainError: NOT_FINITE if one of them is not.
        """
        if not len(embedding):
            return
        if not np.isfinite(embedding).all():
            raise MultigrainError(
                ErrorKind.NOT_FINITE,
                "the network's embedding of an image is not finite: the weights are damaged, "
                "or the training diverged; use another checkpoint",
            )
        rows = extended(embedding)
        mean = rows.mean(axis=0)
        centred = rows - mean
        total = self.count + len(rows)
        difference = mean - self.mean
        self._scatter += centred.T @ centred
        self._scatter += np.outer(difference, difference) * (self.count * len(rows) / total)
        self.mean = self.mean + difference * (len(rows) / total)
        self.count = total

    def covariance(self) -> NDArray[np.float64]:
        """(C + 1, C + 1), divided by n - 1."""
        return self._scatter / (self.count - 1)
