"""How near a way of computing a network is to the bundle's reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from multigrain.bundle.reference import FloatArray, Reference

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
