"""The whitening of a bundle's head: one safetensors file, read by whoever serves it."""

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
from multigrain.whitening.whitening import Classifier, Whitening

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
        """float32 (N, D) of embeddings (N, C) as the network gives them; not normalised."""
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
        raise _unusable(path, "it is not a whole safetensors file of a whitening") from error
    size = embedding_size + 1
    arrays = (stored.mean, stored.projection, stored.weight, stored.bias)
    if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays):
        raise _unusable(path, "its numbers are not finite float32")
    if stored.mean.shape != (size,) or stored.projection.shape != (size, size):
        raise _unusable(
            path,
            f"its projection has the shape {stored.projection.shape}, and the embedding of "
            f"{embedding_size} numbers needs ({size}, {size})",
        )
    return stored


def _unusable(path: Path, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT,
        f"the whitening {path.name} cannot be used: {what}. Export the model again",
    )
