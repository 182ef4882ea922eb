"""Instance losses on embeddings: margin loss (MultiGrain equations 3-5) and triplet loss.

Examples with equal instance ids are augmented copies of one image: positives of each other.
"""

from __future__ import annotations

import mindspore
from mindspore import Parameter, Tensor, nn, ops


def l2_normalize(embedding: Tensor) -> Tensor:
    """Normalizes the rows of (N, C) to length 1, float32.

    A zero row stays zero and has a finite gradient.
    """
    embedding = ops.cast(embedding, mindspore.float32)
    squared = ops.ReduceSum(keep_dims=True)(embedding * embedding, 1)
    return embedding * ops.rsqrt(squared + 1e-12)


def squared_distances(unit: Tensor) -> Tensor:
    """Computes the (N, N) squared Euclidean distances of (N, C) unit rows; never negative."""
    # Rounding can make 2 - 2 cos slightly negative: the relu keeps a later sqrt from NaN.
    return ops.relu(2.0 - 2.0 * ops.MatMul(transpose_b=True)(unit, unit))


def distances(unit: Tensor) -> Tensor:
    """Computes the (N, N) Euclidean distances of (N, C) unit rows.

    Adding 1e-8 to the squares keeps the gradient finite at distance 0.
    """
    return ops.sqrt(squared_distances(unit) + 1e-8)


def same_image(instances: Tensor) -> Tensor:
    """(N,) ids -> (N, N) bool: whether two examples are copies of one image (or identical)."""
    return ops.equal(ops.expand_dims(instances, 1), ops.expand_dims(instances, 0))


def positive_pairs(same: Tensor) -> Tensor:
    """(N, N) bool -> (N, N) float32: 1 for every ordered pair (i, j), i != j, of one image."""
    n = same.shape[0]
    return ops.cast(same, mindspore.float32) * (1.0 - ops.eye(n, n, mindspore.float32))


def positive_rank(positive: Tensor) -> Tensor:
    """(N, N) 0/1 -> (N, N) int32: number of the row's positives left of each column."""
    before = ops.cumsum(positive, 1) - positive
    return ops.cast(before, mindspore.int32)


# Names and values of the published implementation (arXiv 1706.07567).
CUTOFF = 0.5
NONZERO_LOSS_CUTOFF = 1.4
_EXCLUDED_SCORE = -1e30


def log_weights(distance: Tensor, dimension: int) -> Tensor:
    """Computes log(1/q(D)), the sampling weight of a negative at distance D, up to a constant.

    q(z) ~ z^(d-2) (1 - z^2/4)^((d-3)/2) is the density of distances between points uniformly
    distributed on the d-dimensional sphere. D is clamped to [0.5, 1.4]: below, the weight would
    favor noise; near 2 it would be infinite.
    """
    z = ops.minimum(ops.maximum(distance, Tensor(CUTOFF, mindspore.float32)),
                    Tensor(NONZERO_LOSS_CUTOFF, mindspore.float32))  # fmt: skip
    return (2.0 - dimension) * ops.log(z) - ((dimension - 3.0) / 2.0) * ops.log(1.0 - z * z / 4.0)


def sample_negatives(
    distance: Tensor, same: Tensor, positive: Tensor, noise: Tensor, dimension: int
) -> Tensor:
    """Samples one negative for each ordered positive pair (distance-weighted sampling).

    Anchor i with k positives draws k negatives without replacement, with probability
    proportional to 1/q(D) among examples of other images nearer than 1.4 (there the loss can
    be positive), or uniformly among all other images if none is that near. Adding standard
    Gumbel noise to the log-weights and taking the k largest draws exactly from that distribution
    (Gumbel top-k) without exponentials of log-weights that span thousands. If there are fewer
    than k candidates, they are reused in rotation.

    Args:
        distance: (N, N).
        same: (N, N) bool, from :func:`same_image`.
        positive: (N, N) 0/1, from :func:`positive_pairs`.
        noise: (N, N) standard Gumbel noise.
        dimension: C of the embedding.

    Returns:
        (N, N) int32; entry (i, j) is the negative of the pair (i, j), and undefined where (i, j)
        is not a positive pair.
    """
    other = 1.0 - ops.cast(same, mindspore.float32)
    near = other * ops.cast(distance < NONZERO_LOSS_CUTOFF, mindspore.float32)
    has_near = ops.cast(ops.ReduceSum(keep_dims=True)(near, 1) > 0, mindspore.float32)
    candidate = has_near * near + (1.0 - has_near) * other
    # has_near = 0 leaves the noise alone: a uniform choice.
    score = has_near * log_weights(distance, dimension) + noise
    score = ops.select(candidate > 0, score, ops.full_like(score, _EXCLUDED_SCORE))
    _, order = ops.topk(score, score.shape[1])
    count = ops.cast(ops.ReduceSum(keep_dims=True)(candidate, 1), mindspore.int32)
    count = ops.maximum(count, Tensor(1, mindspore.int32))
    rank = positive_rank(positive) % count
    return ops.gather_elements(order, 1, rank)


class MarginLoss(nn.Cell):
    """Margin loss with distance-weighted sampling (arXiv 1706.07567; MultiGrain equations 3-5).

    max(0, alpha + y (D - beta)), summed over positive pairs (y=1) and sampled negatives (y=-1).

    D is the distance of the normalized embeddings. beta is learned: every active positive
    pushes it up and every active negative down. The sum is divided by the number of *active*
    terms (at least 1), like in the published code; the paper's equation 5 divides by the number
    of pairs. The loss of a batch without a positive pair is 0.

    Args:
        margin: alpha.
        beta: initial value.
    """

    def __init__(self, margin: float = 0.2, beta: float = 1.2) -> None:
        super().__init__()
        self.margin = margin
        self.beta = Parameter(Tensor(beta, mindspore.float32), name="beta")

    def construct(self, embedding: Tensor, instances: Tensor, noise: Tensor) -> Tensor:
        distance = distances(l2_normalize(embedding))
        same = same_image(instances)
        positive = positive_pairs(same)
        negative = ops.stop_gradient(
            sample_negatives(distance, same, positive, noise, embedding.shape[1])
        )
        # A batch of a single image has no negatives at all.
        total = ops.ReduceSum()
        has_other = ops.cast(
            ops.ReduceSum(keep_dims=True)(1.0 - ops.cast(same, mindspore.float32), 1) > 0,
            mindspore.float32,
        )
        pulled = positive * ops.relu(self.margin + distance - self.beta)
        pushed = (
            positive
            * has_other
            * ops.relu(self.margin - ops.gather_elements(distance, 1, negative) + self.beta)
        )
        active = total(ops.cast(pulled > 0, mindspore.float32)) + total(
            ops.cast(pushed > 0, mindspore.float32)
        )
        return (total(pulled) + total(pushed)) / ops.maximum(
            ops.stop_gradient(active), Tensor(1.0, mindspore.float32)
        )


# Larger than any squared distance of unit vectors.
_FAR = 1e9


class TripletLoss(nn.Cell):
    """Triplet loss with semi-hard negatives (FaceNet, arXiv 1503.03832).

    Mean over ordered positive pairs (i, j) of max(0, D_ij^2 - D_ik^2 + margin).

    k is the semi-hard negative: of the examples of other images that are farther from i than j
    is, the nearest; if none is farther, the farthest of all. The selection has no gradient. The
    loss of a batch without positive pairs, or with a single image, is 0.

    Args:
        margin: 0.1 in the ModelZoo's variant.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def construct(self, embedding: Tensor, instances: Tensor) -> Tensor:
        squared = squared_distances(l2_normalize(embedding))
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
