"""A whitening: how it is fitted, applied, and folded into a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.whitening.descriptor import extended
from multigrain.whitening.moments import Moments

# Eigenvalues below this share of their mean count as this much. The covariance of 2049
# dimensions from 20,000 images has tail eigenvalues that are mostly noise, and one from fewer
# images than dimensions has zeros; to divide by their roots would make noise the largest part
# of every descriptor. A spectrum that falls as k^-1.5, as those of trained networks do about,
# is hardly touched: its smallest of 2049 is 0.009 of the mean.
TAIL = 0.01


@dataclass(frozen=True)
class Whitening:
    """phi = (u - mean) @ projection, with u = [e; 1] / ||[e; 1]||; all float64.

    ``projection = V / sqrt(variance)``: V has the covariance's eigenvectors as columns, the
    greatest variance first, and the variance is clipped from below at ``TAIL`` times its mean.
    Of the data it was fitted to, phi has mean 0, and covariance 1 where nothing was clipped. The
    retrieval descriptor is phi at length 1.

    Args:
        mean: (D,), D = C + 1.
        projection: (D, D).
        inverse: (D, D), of the projection: ``sqrt(variance) * V^T``.
        images: it was fitted to.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]
    inverse: NDArray[np.float64]
    images: int

    def apply(self, embedding: NDArray[Any]) -> NDArray[np.float64]:
        """phi (N, D) of embeddings (N, C), not normalised; its length is left as it is."""
        return (extended(embedding) - self.mean) @ self.projection


@dataclass(frozen=True)
class Classifier:
    """scores = phi @ weight.T + bias; weight (K, D), bias (K,), float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


def fit(moments: Moments) -> Whitening:
    """The whitening of the descriptors that were added to ``moments``.

    Raises:
        MultigrainError: DATASET with fewer than two images, or if all have one descriptor.
    """
    if moments.count < 2:
        raise _unusable(f"{moments.count} readable images are too few, at least 2 are needed")
    variance, vectors = np.linalg.eigh(moments.covariance())
    variance, vectors = variance[::-1], vectors[:, ::-1]
    average = float(variance.mean())
    # Differences of numbers of size 1 that are nothing but rounding.
    if not average > np.finfo(np.float64).eps ** 2:
        raise _unusable("all its images have the same descriptor")
    deviation = np.sqrt(np.maximum(variance, TAIL * average))
    return Whitening(
        mean=moments.mean,
        projection=vectors / deviation,
        inverse=deviation[:, None] * vectors.T,
        images=moments.count,
    )


def fold(whitening: Whitening, weight: NDArray[Any], bias: NDArray[Any]) -> Classifier:
    """The classifier of phi that stands for one of e.

    With ``w = [weight bias]``: weight' = w (P^T)^-1, bias' = w mean, and therefore
    ``phi @ weight'^T + bias' = u @ w^T = (weight e + bias) / ||[e; 1]||``: the same order of
    the classes for every image, hence the same top-k; the scores themselves are scaled by a
    positive factor of each image, and probabilities made of them differ.

    Args:
        whitening: of D = C + 1 dimensions.
        weight: (K, C).
        bias: (K,).
    """
    both = np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)
    return Classifier(weight=both @ whitening.inverse.T, bias=both @ whitening.mean)


def _unusable(what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.DATASET,
        f"no whitening can be fitted to spec.whitening_path: {what}. Give a folder of many "
        "different images, 20,000 or so",
    )
