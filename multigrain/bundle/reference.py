"""What the network itself says of a few test images, computed by MindSpore at export.

Whoever serves the bundle compares with it, and need not have MindSpore for that.
"""

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
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import normalize

FloatArray = NDArray[np.float32]

_PIXELS, _EMBEDDING, _LOGITS = "pixels", "embedding", "logits"


@dataclass(frozen=True)
class Reference:
    """Images and what the network gives for them.

    Args:
        pixels: uint8 (N, S, S, 3), as after scaling and cutting.
        embedding: float32 (N, C), not normalised.
        logits: float32 (N, K).
    """

    pixels: NDArray[np.uint8]
    embedding: FloatArray
    logits: FloatArray

    def images(self, preprocessing: Preprocessing) -> FloatArray:
        """float32 (N, 3, S, S), as the network takes them."""
        return normalized(self.pixels, preprocessing)


def normalized(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> FloatArray:
    """uint8 (N, S, S, 3) -> float32 (N, 3, S, S)."""
    return np.stack([normalize(one, preprocessing.mean, preprocessing.std) for one in pixels])


def pattern_pixels(size: int, count: int) -> NDArray[np.uint8]:
    """Pictures for comparisons, uint8 (count, size, size, 3): smooth, grainy, and different."""
    random = np.random.default_rng(0)
    coarse = random.normal(size=(count, 4, 4, 3))
    repeat = -(-size // 4)
    smooth = coarse.repeat(repeat, axis=1).repeat(repeat, axis=2)[:, :size, :size]
    values = 127.5 + 55 * (smooth + 0.3 * random.normal(size=smooth.shape))
    return values.round().clip(0, 255).astype(np.uint8)


def write_reference(path: Path, reference: Reference) -> None:
    """Writes the file of a head; ``multigrain.bundle.manifest.Head.reference`` names it."""
    tensors: dict[str, NDArray[Any]] = {
        _PIXELS: np.ascontiguousarray(reference.pixels),
        _EMBEDDING: np.ascontiguousarray(reference.embedding, dtype=np.float32),
        _LOGITS: np.ascontiguousarray(reference.logits, dtype=np.float32),
    }
    path.write_bytes(save_tensors(tensors))


def read_reference(path: Path) -> Reference:
    """Raises MultigrainError CHECKPOINT."""
    try:
        tensors = load_tensors(path.read_bytes())
        reference = Reference(*(tensors[name] for name in (_PIXELS, _EMBEDDING, _LOGITS)))
    except (OSError, KeyError, SafetensorError) as error:
        raise MultigrainError(
            ErrorKind.CHECKPOINT,
            f"the bundle's {path.name} cannot be read: export or import it again",
        ) from error
    pixels, rows = reference.pixels, len(reference.pixels)
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or rows < 1
        or any(o.ndim != 2 or len(o) != rows for o in (reference.embedding, reference.logits))
    ):
        raise MultigrainError(
            ErrorKind.CHECKPOINT, f"the bundle's {path.name} does not hold a reference"
        )
    return reference
