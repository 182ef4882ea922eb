"""What runs a network: one small interface, one implementation a library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.bundle.manifest import BundleManifest

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: BundleManifest


@dataclass(frozen=True)
class Compute:
    """Where and how widely to compute. ``threads`` 0 = all cores."""

    device: str = "cpu"
    threads: int = 0
    max_batch: int = 32


@dataclass(frozen=True)
class Outputs:
    """embedding float32 (N, C), as the network gives it; logits float32 (N, K)."""

    embedding: FloatArray
    logits: FloatArray


class Runtime(ABC):
    """One network at one resolution, loaded. Used from one thread only."""

    #: Library, version and device, e.g. "onnxruntime 1.32.0 cpu".
    name: str
    #: Batch sizes worth running once before the first request.
    warm_sizes: tuple[int, ...]

    @abstractmethod
    def run(self, images: FloatArray) -> Outputs:
        """Computes a batch: images float32 (N, 3, S, S), 1 <= N <= ``Compute.max_batch``."""


def padded(images: FloatArray, size: int) -> FloatArray:
    """``images`` with zero images added to make ``size``; for runtimes with fixed batch sizes."""
    if len(images) == size:
        return images
    out = np.zeros((size, *images.shape[1:]), dtype=np.float32)
    out[: len(images)] = images
    return out
