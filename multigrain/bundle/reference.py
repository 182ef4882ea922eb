"""Reference outputs of a bundle, and the comparison of a runtime's outputs with them.

At export MindSpore computes a few reference images, and the bundle stores them with the outputs.
Engines compare with them, and need no MindSpore for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import MAX_WEIGHTS_BYTES, read_bytes
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import normalize
from multigrain.tensors import parse_tensors

FloatArray = NDArray[np.float32]
Precision = Literal["f32", "bf16", "int8"]

#: Of f32: limit of the difference of a component of the normalized embedding, and of a logit
#: relative to the largest logit.
MAX_DIFFERENCE: Final = 1e-4
#: Lower limit of the cosine of every image's embedding with the reference. That of int8 is for
#: graphs without a ``reference_cosine``; see :func:`least_int8_cosine`.
MIN_COSINE: Final[dict[Precision, float]] = {"bf16": 0.9995, "int8": 0.99}
#: An 8-bit graph is exported if the first percentile of its cosines is at least this, and so are
#: all cosines with the reference.
MIN_COSINE_P1: Final = 0.95
# Processors differ in the layers that are not quantized (float32 or bfloat16).
_INT8_SLACK: Final = 0.005

_PIXELS, _EMBEDDING, _LOGITS = "pixels", "embedding", "logits"


@dataclass(frozen=True)
class Agreement:
    """How close two outputs for the same images are.

    Args:
        cosine: smallest cosine of an image's two embeddings.
        embedding: largest difference of a component of the normalized embedding.
        logits: largest difference of a logit, relative to the largest (at least 1).
    """

    cosine: float
    embedding: float
    logits: float

    def suffices(self, precision: Precision, least: float | None = None) -> bool:
        """Whether this is close enough for a precision. Never with NaN.

        Args:
            precision: of the runtime.
            least: smallest cosine; None = that of the precision.
        """
        if least is None:
            least = MIN_COSINE.get(precision)
        if least is not None:
            return self.cosine >= least and bool(np.isfinite(self.logits))
        return self.embedding <= MAX_DIFFERENCE and self.logits <= MAX_DIFFERENCE


def least_int8_cosine(exported: float) -> float:
    """Lower limit of the cosine of an 8-bit graph with the reference.

    The reference images are synthetic: a graph that was calibrated with photographs may be less
    exact on them than on photographs, by which the export judges it. What an engine has to find out
    is whether this machine computes the graph as the one that exported it.

    Args:
        exported: the graph's ``reference_cosine``; 0 = not known.
    """
    return max(exported, MIN_COSINE_P1) - _INT8_SLACK if exported else MIN_COSINE["int8"]


def agreement(embedding: FloatArray, logits: FloatArray, expected: Reference) -> Agreement:
    """Compares outputs with the reference.

    Args:
        embedding: float32 (N, C) of the first N reference images.
        logits: float32 (N, K) of the same.
        expected: the reference.
    """
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


@dataclass(frozen=True)
class Reference:
    """Reference images and outputs.

    Args:
        pixels: uint8 (N, S, S, 3), resized and cropped.
        embedding: float32 (N, C), not normalized.
        logits: float32 (N, K).
    """

    pixels: NDArray[np.uint8]
    embedding: FloatArray
    logits: FloatArray

    def images(self, preprocessing: Preprocessing) -> FloatArray:
        """The network's input, float32 (N, 3, S, S)."""
        return normalized(self.pixels, preprocessing)


def normalized(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> FloatArray:
    """Normalizes uint8 (N, S, S, 3) to float32 (N, 3, S, S)."""
    return np.stack([normalize(one, preprocessing.mean, preprocessing.std) for one in pixels])


def pattern_pixels(size: int, count: int) -> NDArray[np.uint8]:
    """Synthetic images, uint8 (count, size, size, 3): smooth with noise, all different."""
    random = np.random.default_rng(0)
    coarse = random.normal(size=(count, 4, 4, 3))
    repeat = -(-size // 4)
    smooth = coarse.repeat(repeat, axis=1).repeat(repeat, axis=2)[:, :size, :size]
    values = 127.5 + 55 * (smooth + 0.3 * random.normal(size=smooth.shape))
    return values.round().clip(0, 255).astype(np.uint8)


def write_reference(path: Path, reference: Reference) -> None:
    """Writes the file that a head names in ``reference``."""
    tensors: dict[str, NDArray[Any]] = {
        _PIXELS: np.ascontiguousarray(reference.pixels),
        _EMBEDDING: np.ascontiguousarray(reference.embedding, dtype=np.float32),
        _LOGITS: np.ascontiguousarray(reference.logits, dtype=np.float32),
    }
    path.write_bytes(save_tensors(tensors))


def read_reference(path: Path) -> Reference:
    """Reads a file of ``write_reference``. Raises MultigrainError CHECKPOINT."""
    try:
        tensors: dict[str, NDArray[Any]] = parse_tensors(
            read_bytes(path, max_bytes=MAX_WEIGHTS_BYTES)
        )
        reference = Reference(*(tensors[name] for name in (_PIXELS, _EMBEDDING, _LOGITS)))
    except (OSError, KeyError, ValueError) as error:
        raise MultigrainError(
            ErrorKind.CHECKPOINT,
            f"the bundle's {path.name} cannot be read: export or import it again",
        ) from error
    pixels, rows = reference.pixels, len(reference.pixels)
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 4
        or rows < 1
        or pixels.shape[1] != pixels.shape[2]
        or pixels.shape[3] != 3
        or any(
            outputs.dtype != np.float32 or outputs.ndim != 2 or len(outputs) != rows
            for outputs in (reference.embedding, reference.logits)
        )
    ):
        raise MultigrainError(
            ErrorKind.CHECKPOINT, f"the bundle's {path.name} has no reference outputs"
        )
    return reference
