"""What runs a network: one small interface, one implementation a library."""

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

# On a CPU a batch of 8 pictures of 224 x 224 keeps all units busy: larger ones were no faster
# (ResNet-50 with OpenVINO on two cores), they only let the first picture wait for the last.
_FULL_PIXELS: Final = 8 * 224 * 224


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
    """embedding float32 (N, C), as the network gives it; logits float32 (N, K), or (N, 0)."""

    embedding: FloatArray
    logits: FloatArray


class Runtime(ABC):
    """One network at one resolution, loaded. Used from one thread."""

    #: Library, version, device and precision, e.g. "openvino 2026.4.1 cpu bf16".
    name: str
    #: Decides how far the outputs may be from the reference, see ``multigrain.bundle.reference``.
    precision: Precision = "f32"
    #: Batch sizes worth running once before the first request.
    warm_sizes: tuple[int, ...]
    #: The smallest batch with full throughput: a larger one costs latency and gains nothing.
    best_batch: int
    #: Its size and normalisation are what the network takes.
    preprocessing: Preprocessing

    @abstractmethod
    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        """Computes a batch: images float32 (N, 3, S, S), 1 <= N <= ``Compute.max_batch``.

        Without ``scores`` the logits may be left out.
        """

    def run_pixels(self, pictures: Sequence[Pixels], *, scores: bool = True) -> Outputs:
        """As ``run``, of pictures uint8 (S, S, 3) that are scaled and cut, not normalised."""
        images = np.stack([self.normalized(pixels) for pixels in pictures])
        return self.run(images, scores=scores)

    def normalized(self, pixels: Pixels) -> FloatArray:
        """uint8 (S, S, 3) -> float32 (3, S, S)."""
        return normalize(pixels, self.preprocessing.mean, self.preprocessing.std)


def full_batch(resolution: int, compute: Compute) -> int:
    """``Runtime.best_batch`` of a network at ``resolution`` x ``resolution`` pixels."""
    if compute.device != "cpu":
        return compute.max_batch
    return max(1, min(compute.max_batch, _FULL_PIXELS // resolution**2))


def padded(images: FloatArray, size: int) -> FloatArray:
    """``images`` with zero images added to make ``size``; for runtimes with fixed batch sizes."""
    if len(images) == size:
        return images
    out = np.zeros((size, *images.shape[1:]), dtype=np.float32)
    out[: len(images)] = images
    return out
