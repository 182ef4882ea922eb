"""Reproducible random weights and images with NumPy."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Floats = NDArray[np.float32]


def seeded_state(shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, Floats]:
    """A state with PyTorch's names: no default values, bounded activations.

    Args:
        shapes: of ``tests.peers.names.pytorch_shapes``.
    """
    return {name: _tensor(name, shape, seed) for name, shape in shapes.items()}


def images(count: int, size: int, seed: int = 0) -> Floats:
    """(count, 3, size, size), normal like normalized pictures."""
    rng = np.random.default_rng([seed, size])
    return rng.standard_normal((count, 3, size, size), dtype=np.float32)


def _tensor(name: str, shape: Shape, seed: int) -> Floats:
    # Each has its own random stream, so that a further layer changes no other.
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.float32)
    if len(shape) == 4:
        deviation = math.sqrt(2.0 / (shape[1] * shape[2] * shape[3]))
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
    if len(shape) == 2:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(shape[1]))
    low, high = (0.5, 1.5) if name.endswith(("running_var", "weight")) else (-0.3, 0.3)
    if name.endswith((".bn3.weight", ".bn2.weight")):
        high = 0.7
    return rng.uniform(low, high, shape).astype(np.float32)
