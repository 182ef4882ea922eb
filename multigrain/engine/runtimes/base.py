"""The interface of runtimes: libraries that run a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from multigrain.bundle.manifest import BundleManifest
from multigrain.bundle.reference import Precision
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import normalize

FloatArray = NDArray[np.float32]
Pixels = NDArray[np.uint8]

# On a CPU a batch of 8 images of 224 x 224 reaches full throughput: larger batches were no faster
# (ResNet-50 with OpenVINO on two cores), and only delay the first image.
_FULL_PIXELS: Final = 8 * 224 * 224


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: BundleManifest


@dataclass(frozen=True)
class Compute:
    """Device, number of threads (0 = all cores) and largest batch."""

    device: str = "cpu"
    threads: int = 0
    max_batch: int = 32


@dataclass(frozen=True)
class Outputs:
    """embedding: float32 (N, C), not normalized; logits: float32 (N, K), or (N, 0)."""

    embedding: FloatArray
    logits: FloatArray


class Runtime(ABC):
    """One loaded network at one resolution. Used from one thread."""

    #: Library, version, device and precision, e.g. "openvino 2026.4.1 cpu bf16".
    name: str
    #: How far outputs may differ from the reference outputs: see ``multigrain.bundle.reference``.
    precision: Precision = "f32"
    #: Batch sizes worth running once before the first request.
    warm_sizes: tuple[int, ...]
    #: The smallest batch with full throughput: larger ones only cost latency.
    best_batch: int
    #: Size and normalization of the network's input.
    preprocessing: Preprocessing

    @abstractmethod
    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        """Computes a batch.

        Args:
            images: normalized, float32 (N, 3, S, S), 1 <= N <= ``Compute.max_batch``.
            scores: False = the logits may be empty.
        """

    def run_pixels(self, images: Sequence[Pixels], *, scores: bool = True) -> Outputs:
        """As ``run``, of resized and cropped images uint8 (S, S, 3) that are not normalized."""
        normalized = np.stack([self.normalized(pixels) for pixels in images])
        return self.run(normalized, scores=scores)

    def normalized(self, pixels: Pixels) -> FloatArray:
        """Normalizes uint8 (S, S, 3) to float32 (3, S, S)."""
        return normalize(pixels, self.preprocessing.mean, self.preprocessing.std)


def full_batch(resolution: int, compute: Compute) -> int:
    """The ``Runtime.best_batch`` at a resolution."""
    if compute.device != "cpu":
        return compute.max_batch
    return max(1, min(compute.max_batch, _FULL_PIXELS // resolution**2))


def padded(images: FloatArray, size: int) -> FloatArray:
    """``images`` padded with zeros to ``size`` images, for runtimes with fixed batch sizes."""
    if len(images) == size:
        return images
    out = np.zeros((size, *images.shape[1:]), dtype=np.float32)
    out[: len(images)] = images
    return out
