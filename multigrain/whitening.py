"""PCA whitening of descriptors (MultiGrain, arXiv 1902.05509, section 3.5 and its code).

Fitted in float64 at export, applied in float32 in serving. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import MAX_WEIGHTS_BYTES, Roots, read_bytes
from multigrain.tensors import parse_tensors

# Eigenvalues are clipped from below at this fraction of their mean. The covariance of 2049
# dimensions from 20,000 images has tail eigenvalues that are mostly noise, and one from fewer
# images than dimensions has zeros; dividing by their roots would make noise the largest part of
# every descriptor. A spectrum that decays as k^-1.5, like those of trained networks, is hardly
# changed: the smallest of its 2049 eigenvalues is 0.009 of the mean.
MIN_VARIANCE_RATIO = 0.01

_MEAN, _PROJECTION = "mean", "projection"
_WEIGHT, _BIAS = "classifier.weight", "classifier.bias"


def homogeneous(embedding: NDArray[Any]) -> NDArray[np.float64]:
    """Computes normalized homogeneous coordinates u = [e; 1] / ||[e; 1]||.

    The constant turns a classifier's bias into a weight, so that a linear classifier of e is
    one of u too, up to the factor 1 / ||[e; 1]|| of each image.

    Args:
        embedding: e, (N, C), as the network returns it.

    Returns:
        float64 (N, C + 1), rows of length 1.
    """
    rows = np.empty((len(embedding), embedding.shape[1] + 1))
    rows[:, :-1] = embedding
    rows[:, -1] = 1.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


class Moments:
    """Streaming mean and covariance of u = [e; 1] / ||[e; 1]||, in float64.

    Batches are combined by the pairwise update of Chan, Golub and LeVeque (1983), which
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
        """Adds a batch of embeddings (n, C), not normalized.

        Raises:
            MultigrainError: NOT_FINITE, if one of them is non-finite.
        """
        if not len(embedding):
            return
        if not np.isfinite(embedding).all():
            raise MultigrainError(
                ErrorKind.NOT_FINITE,
                "the network's embedding of an image is not finite: its weights are damaged or "
                "have diverged; use another checkpoint",
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
        """Returns the covariance (C + 1, C + 1), normalized by n - 1."""
        return self._scatter / (self.count - 1)


@dataclass(frozen=True)
class Whitening:
    """phi = (u - mean) @ projection, with u = [e; 1] / ||[e; 1]||; all float64.

    ``projection = V / sqrt(variance)``: V has the covariance's eigenvectors as columns, largest
    variance first, and the variance is clipped from below at ``MIN_VARIANCE_RATIO`` times its
    mean. On the data it was fitted to, phi has mean 0, and covariance 1 where nothing was
    clipped. The retrieval descriptor is phi normalized to length 1.

    Args:
        mean: (D,), D = C + 1.
        projection: (D, D).
        inverse: (D, D), inverse of the projection: ``sqrt(variance) * V^T``.
        images: number of images it was fitted to.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]
    inverse: NDArray[np.float64]
    images: int

    def apply(self, embedding: NDArray[Any]) -> NDArray[np.float64]:
        """Computes phi (N, D), not normalized, from embeddings (N, C)."""
        return (homogeneous(embedding) - self.mean) @ self.projection


@dataclass(frozen=True)
class WhitenedClassifier:
    """A classifier of whitened descriptors: scores = phi @ weight.T + bias.

    Args:
        weight: (K, D) float64.
        bias: (K,) float64.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


def fit_whitening(moments: Moments) -> Whitening:
    """Fits a whitening to the descriptors that were added to ``moments``.

    Raises:
        MultigrainError: DATASET, if there are fewer than two images or all descriptors are equal.
    """
    if moments.count < 2:
        raise _cannot_fit(f"{moments.count} readable images are too few, at least 2 are needed")
    variance, vectors = np.linalg.eigh(moments.covariance())
    variance, vectors = variance[::-1], vectors[:, ::-1]
    average = float(variance.mean())
    # Descriptors have length 1: a variance of this size is rounding error.
    if not average > np.finfo(np.float64).eps ** 2:
        raise _cannot_fit("all its images have the same descriptor")
    deviation = np.sqrt(np.maximum(variance, MIN_VARIANCE_RATIO * average))
    return Whitening(
        mean=moments.mean,
        projection=vectors / deviation,
        inverse=deviation[:, None] * vectors.T,
        images=moments.count,
    )


def fold_classifier(
    whitening: Whitening, weight: NDArray[Any], bias: NDArray[Any]
) -> WhitenedClassifier:
    """Folds the inverse whitening into a classifier of e, so that it classifies phi.

    With ``w = [weight bias]``: weight' = w (P^T)^-1, bias' = w mean, and therefore
    ``phi @ weight'^T + bias' = u @ w^T = (weight e + bias) / ||[e; 1]||``. The order of the
    classes is the same for every image, hence the top-k; the scores are scaled by a positive
    factor per image, so that probabilities computed from them differ.

    Args:
        whitening: of D = C + 1 dimensions.
        weight: (K, C).
        bias: (K,).
    """
    both = np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)
    return WhitenedClassifier(weight=both @ whitening.inverse.T, bias=both @ whitening.mean)


def _cannot_fit(reason: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.DATASET,
        f"no whitening can be fitted to spec.whitening_path: {reason}. Give a folder of many "
        "different images, about 20,000",
    )


@dataclass(frozen=True)
class StoredWhitening:
    """A head's whitening in a bundle, float32: phi = ([e; 1] / ||[e; 1]|| - mean) @ projection.

    Args:
        mean: (D,), D = C + 1.
        projection: (D, D).
        weight, bias: (K, D) and (K,), the network's classifier, folded; same top-k.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def size(self) -> int:
        """Dimensions of a whitened vector, D."""
        return int(self.projection.shape[1])

    def apply(self, embedding: NDArray[Any]) -> NDArray[np.float32]:
        """Computes phi, float32 (N, D), not normalized, from the network's embeddings (N, C)."""
        length = np.sqrt(1.0 + np.square(embedding, dtype=np.float64).sum(axis=1, keepdims=True))
        rows = np.empty((len(embedding), len(self.mean)), np.float32)
        rows[:, :-1] = embedding / length
        rows[:, -1:] = 1.0 / length
        rows -= self.mean
        result: NDArray[np.float32] = rows @ self.projection
        return result


def write_whitening(
    path: Path, whitening: Whitening, classifier: WhitenedClassifier
) -> StoredWhitening:
    """Writes a safetensors file and returns its content."""
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


def read_whitening(path: Path, embedding_size: int, roots: Roots = None) -> StoredWhitening:
    """Reads a whitening and checks that it matches the network's embedding.

    Args:
        path: the file.
        embedding_size: dimensions of the network's embedding.
        roots: folders that the file must be in.

    Raises:
        MultigrainError: CHECKPOINT, if it is damaged or does not match.
    """
    try:
        tensors: dict[str, NDArray[Any]] = parse_tensors(
            read_bytes(path, max_bytes=MAX_WEIGHTS_BYTES, roots=roots)
        )
        stored = StoredWhitening(
            *(tensors[name] for name in (_MEAN, _PROJECTION, _WEIGHT, _BIAS)),
        )
    except (OSError, KeyError, ValueError) as error:
        raise _invalid_file(path, "it is not a complete safetensors file of a whitening") from error
    size = embedding_size + 1
    arrays = (stored.mean, stored.projection, stored.weight, stored.bias)
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays):
        raise _invalid_file(path, "its values are not finite float32")
    if stored.mean.shape != (size,) or stored.projection.shape != (size, size):
        raise _invalid_file(
            path,
            f"its projection has the shape {stored.projection.shape}, but an embedding of "
            f"{embedding_size} dimensions needs ({size}, {size})",
        )
    classes = len(stored.bias) if stored.bias.ndim == 1 else -1
    if stored.weight.shape != (classes, size):
        raise _invalid_file(
            path, f"its classifier has the shapes {stored.weight.shape} and {stored.bias.shape}"
        )
    return stored


def _invalid_file(path: Path, reason: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT,
        f"the whitening {path.name} cannot be used: {reason}. Export the model again",
    )
