"""Which examples of a batch show the same image."""

from __future__ import annotations

import mindspore
from mindspore import Tensor, ops


def same_image(instances: Tensor) -> Tensor:
    """(N,) ids -> (N, N) bool: the two are copies of one image (or the same example)."""
    return ops.equal(ops.expand_dims(instances, 1), ops.expand_dims(instances, 0))


def positive_pairs(same: Tensor) -> Tensor:
    """(N, N) bool -> (N, N) float32: 1 for every ordered pair (i, j), i != j, of one image."""
    n = same.shape[0]
    return ops.cast(same, mindspore.float32) * (1.0 - ops.eye(n, n, mindspore.float32))


def positive_rank(positive: Tensor) -> Tensor:
    """(N, N) 0/1 -> (N, N) int32: how many positives of the anchor stand before this column."""
    before = ops.cumsum(positive, 1) - positive
    return ops.cast(before, mindspore.int32)
