"""Triplet loss with semi-hard negatives (FaceNet, arXiv 1503.03832)."""

from __future__ import annotations

import mindspore
from mindspore import Tensor, nn, ops

from multigrain.losses.distance import normalise, squared_distances
from multigrain.losses.pairs import positive_pairs, same_image

_FAR = 1e9


class TripletLoss(nn.Cell):
    """Mean over ordered positive pairs (i, j) of max(0, D_ij^2 - D_ik^2 + margin).

    k is the semi-hard negative: of the examples of other images that are farther from i than j
    is, the nearest; when none is farther, the farthest of all. Choosing it carries no gradient.
    A batch without positive pairs, or without another image, gives 0.

    Args:
        margin: 0.1 in the ModelZoo's variant.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def construct(self, embedding: Tensor, instances: Tensor) -> Tensor:
        squared = squared_distances(normalise(embedding))
        same = same_image(instances)
        positive = positive_pairs(same)
        fixed = ops.stop_gradient(squared)
        # Negatives of each anchor, nearest first; examples of the same image come last.
        ranked = ops.select(same, ops.full_like(fixed, _FAR), fixed)
        nearest, order = ops.topk(-ranked, ranked.shape[1])
        count = ops.ReduceSum(keep_dims=True)(1.0 - ops.cast(same, mindspore.float32), 1)
        last = ops.cast(ops.maximum(count - 1.0, Tensor(0.0, mindspore.float32)), mindspore.int32)
        place = ops.searchsorted(-nearest, fixed, out_int32=True, right=True)
        negative = ops.gather_elements(order, 1, ops.minimum(place, last))
        weight = positive * ops.cast(count > 0, mindspore.float32)
        hinge = ops.relu(squared - ops.gather_elements(squared, 1, negative) + self.margin)
        pairs = ops.maximum(ops.ReduceSum()(weight), Tensor(1.0, mindspore.float32))
        return ops.ReduceSum()(weight * hinge) / pairs
