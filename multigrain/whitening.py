"""PCA whitening of descriptors (MultiGrain, arXiv 1902.05509, section 3.5 and its code)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from multigrain.errors import ErrorKind, MultigrainError


def homogeneous(embedding: NDArray[Any]) -> NDArray[np.float64]:
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


# MERGED: Mean and covariance of descriptors that come in batches.


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
        """Takes embeddings (n, C), not normalized.

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
        rows = homogeneous(embedding)
        mean = rows.mean(axis=0)
        centered = rows - mean
        total = self.count + len(rows)
        difference = mean - self.mean
        self._scatter += centered.T @ centered
        self._scatter += np.outer(difference, difference) * (self.count * len(rows) / total)
        self.mean = self.mean + difference * (len(rows) / total)
        self.count = total

    def covariance(self) -> NDArray[np.float64]:
        """(C + 1, C + 1), divided by n - 1."""
        return self._scatter / (self.count - 1)


# MERGED: A whitening: how it is fitted, applied, and folded into a classifier.


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
        """phi (N, D) of embeddings (N, C), not normalized; its length is left as it is."""
        return (homogeneous(embedding) - self.mean) @ self.projection


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


# MERGED: The whitening of a bundle's head: one safetensors file, read by whoever serves it.


_MEAN, _PROJECTION = "mean", "projection"
_WEIGHT, _BIAS = "classifier.weight", "classifier.bias"


@dataclass(frozen=True)
class StoredWhitening:
    """What serving needs, in float32: phi = ([e; 1] / ||[e; 1]|| - mean) @ projection.

    Args:
        mean: (D,), D = C + 1.
        projection: (D, D).
        weight, bias: (K, D) and (K,), the network's classifier as one of phi: same top-k.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def size(self) -> int:
        """Numbers in a whitened vector."""
        return int(self.projection.shape[1])

    def apply(self, embedding: NDArray[Any]) -> NDArray[np.float32]:
        """float32 (N, D) of embeddings (N, C) as the network gives them; not normalized."""
        length = np.sqrt(1.0 + np.square(embedding, dtype=np.float64).sum(axis=1, keepdims=True))
        rows = np.empty((len(embedding), len(self.mean)), np.float32)
        rows[:, :-1] = embedding / length
        rows[:, -1:] = 1.0 / length
        rows -= self.mean
        result: NDArray[np.float32] = rows @ self.projection
        return result


def write_whitening(path: Path, whitening: Whitening, classifier: Classifier) -> StoredWhitening:
    """Writes the file and returns what it holds."""
    stored = StoredWhitening(
        whitening.mean.astype(np.float32),
        whitening.projection.astype(np.float32),
        classifier.weight.astype(np.float32),
        classifier.bias.astype(np.float32),
    )
    tensors = {
        _MEAN: stored.mean,
        _PROJECTION: np.ascontiguousarray(stored.projection),
        _WEIGHT: np.ascontiguousarray(stored.weight),
        _BIAS: stored.bias,
    }
    path.write_bytes(save_tensors(tensors, {"images": str(whitening.images)}))
    return stored


def read_whitening(path: Path, embedding_size: int) -> StoredWhitening:
    """Reads a file and checks that it belongs to a network with that embedding.

    Raises:
        MultigrainError: CHECKPOINT.
    """
    try:
        tensors = load_tensors(path.read_bytes())
        stored = StoredWhitening(
            *(tensors[name] for name in (_MEAN, _PROJECTION, _WEIGHT, _BIAS)),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _file_unusable(path, "it is not a whole safetensors file of a whitening") from error
    size = embedding_size + 1
    arrays = (stored.mean, stored.projection, stored.weight, stored.bias)
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays):
        raise _file_unusable(path, "its numbers are not finite float32")
    if stored.mean.shape != (size,) or stored.projection.shape != (size, size):
        raise _file_unusable(
            path,
            f"its projection has the shape {stored.projection.shape}, and the embedding of "
            f"{embedding_size} numbers needs ({size}, {size})",
        )
    return stored


def _file_unusable(path: Path, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT,
        f"the whitening {path.name} cannot be used: {what}. Export the model again",
    )


# MERGED: PCA whitening of descriptors (MultiGrain, arXiv 1902.05509, section 3.5 and its code).
# NumPy only: fitted in float64 at export, applied in float32 in serving.
