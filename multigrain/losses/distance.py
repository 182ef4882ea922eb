"""Distances between L2-normalised embeddings."""

from __future__ import annotations

import mindspore
from mindspore import Tensor, ops


def normalise(embedding: Tensor) -> Tensor:
    """(N, C) -> rows of length 1, float32; a zero row stays zero with a finite gradient."""
    embedding = ops.cast(embedding, mindspore.float32)
    squared = ops.ReduceSum(keep_dims=True)(embedding * embedding, 1)
    return embedding * ops.rsqrt(squared + 1e-12)


def squared_distances(unit: Tensor) -> Tensor:
    """(N, C) unit rows -> (N, N) squared Euclidean distances, never negative."""
    # Rounding can make 2 - 2 cos slightly negative: the relu keeps a later sqrt from NaN.
    return ops.relu(2.0 - 2.0 * ops.MatMul(transpose_b=True)(unit, unit))


def distances(unit: Tensor) -> Tensor:
    """(N, C) unit rows -> (N, N) Euclidean distances; 1e-8 keeps the gradient finite at 0."""
    return ops.sqrt(squared_distances(unit) + 1e-8)
