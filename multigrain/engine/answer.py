"""From the network's output rows to the bytes that are sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.wire import VectorWants
from multigrain.errors import ErrorKind, MultigrainError

_FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class EncodedVector:
    """Little-endian numbers of a vector; ``scale`` is 0 but for int8."""

    data: bytes
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class TopClasses:
    """``count`` classes, most probable first: int32 ids, then float32 probabilities."""

    data: bytes
    count: int


def encode_vector(embedding: NDArray[np.float32], wants: VectorWants) -> EncodedVector:
    """Normalises and converts one embedding (C,).

    int8 is symmetric with one scale a vector (value = byte * scale, scale = max|value| / 127),
    so the error of a number is at most scale / 2.

    Raises:
        MultigrainError: NOT_FINITE if a number is not finite, or does not fit fp16.
    """
    if not np.isfinite(embedding).all():
        raise MultigrainError(
            ErrorKind.NOT_FINITE, "the model's embedding of this image is not finite"
        )
    vector = embedding.astype(np.float32, copy=False)
    if wants.normalize:
        # float64 for the norm: a sum of 2048 squares of large numbers may overflow float32.
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        vector = (vector / (norm or 1.0)).astype(np.float32)
    if wants.dtype == "fp32":
        return EncodedVector(vector.astype("<f4", copy=False).tobytes())
    peak = float(np.abs(vector).max(initial=0.0))
    if wants.dtype == "fp16":
        if peak > _FP16_MAX:
            raise MultigrainError(
                ErrorKind.NOT_FINITE,
                f"the embedding reaches {peak:.3g}, more than fp16 holds: "
                "ask for normalize or for fp32",
            )
        return EncodedVector(vector.astype("<f2").tobytes())
    scale = float(np.float32(peak / 127)) or 1.0
    return EncodedVector(np.rint(vector / scale).clip(-127, 127).astype(np.int8).tobytes(), scale)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The softmax of one row of logits (K,).

    Raises:
        MultigrainError: NOT_FINITE.
    """
    if not np.isfinite(logits).all():
        raise MultigrainError(
            ErrorKind.NOT_FINITE, "the model's class scores of this image are not finite"
        )
    shifted = logits.astype(np.float64)
    powers = np.exp(shifted - shifted.max())
    return powers / powers.sum()


def top_classes(scores: NDArray[np.float64], top_k: int) -> TopClasses:
    """The ``top_k`` most probable classes (at most all) of one row of probabilities (K,)."""
    # Stable, so that equal scores come in the order of their class ids.
    best = np.argsort(-scores, kind="stable")[:top_k]
    data = best.astype("<i4").tobytes() + scores[best].astype("<f4").tobytes()
    return TopClasses(data, len(best))
