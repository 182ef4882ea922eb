"""How near a way of computing a network is to the bundle's reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import normalize

Precision = Literal["f32", "bf16", "int8"]

#: f32: largest difference of a component of the normalised embedding, and of a logit relative
#: to the largest one.
MAX_DIFFERENCE: Final = 1e-4
#: Of every single embedding with the reference's.
MIN_COSINE: Final[dict[Precision, float]] = {"bf16": 0.9995, "int8": 0.99}


@dataclass(frozen=True)
class Agreement:
    """How near two outputs for the same images are.

    Args:
        cosine: of an image's two embeddings, the smallest.
        embedding: largest difference of a component of the normalised embedding.
        logits: largest difference of a logit, relative to the largest (at least 1).
    """

    cosine: float
    embedding: float
    logits: float

    def suffices(self, precision: Precision) -> bool:
        """NaN never does."""
        least = MIN_COSINE.get(precision)
        if least is not None:
            return self.cosine >= least and bool(np.isfinite(self.logits))
        return self.embedding <= MAX_DIFFERENCE and self.logits <= MAX_DIFFERENCE


def agreement(embedding: FloatArray, logits: FloatArray, expected: Reference) -> Agreement:
    """Compares outputs for the first images of the reference, (N, C) and (N, K)."""
    rows = len(embedding)
    ours, theirs = _unit(embedding), _unit(expected.embedding[:rows])
    right = expected.logits[:rows]
    scale = max(1.0, float(np.abs(right).max(initial=0.0)))
    return Agreement(
        cosine=float((ours * theirs).sum(axis=1).min()),
        embedding=float(np.abs(ours - theirs).max()),
        logits=float(np.abs(logits - right).max(initial=0.0)) / scale,
    )


def _unit(rows: FloatArray) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30))


# MERGED: What the network itself says of a few test images, computed by MindSpore at export.
# Whoever serves the bundle compares with it, and need not have MindSpore for that.


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
