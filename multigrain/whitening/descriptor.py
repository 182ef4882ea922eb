"""The descriptor that is whitened: the embedding with a constant, at length 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def extended(embedding: NDArray[Any]) -> NDArray[np.float64]:
    """u = [e; 1] / ||[e; 1]||.

    The constant makes the bias of a classifier a weight, so that a linear classifier of e is
    one of u too, up to the factor 1 / ||[e; 1]|| of each image.

    Args:
        embedding: (N, C), as the network gives it.

    Returns:
        float64 (N, C + 1), rows of length 1.
    """
    rows = np.empty((len(embedding), embedding.shape[1] + 1))
    rows[:, :-1] = embedding
    rows[:, -1] = 1.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
