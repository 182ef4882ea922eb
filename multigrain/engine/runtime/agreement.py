"""Whether a runtime computes what the network does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from multigrain.bundle.reference import Reference
from multigrain.engine.runtime.base import FloatArray, Outputs, Precision, Runtime
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing

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


def agreement(got: Outputs, embedding: FloatArray, logits: FloatArray) -> Agreement:
    """Compares outputs with what is expected, (N, C) and (N, K)."""
    ours, theirs = _unit(got.embedding), _unit(embedding)
    scale = max(1.0, float(np.abs(logits).max(initial=0.0)))
    return Agreement(
        cosine=float((ours * theirs).sum(axis=1).min()),
        embedding=float(np.abs(ours - theirs).max()),
        logits=float(np.abs(got.logits - logits).max(initial=0.0)) / scale,
    )


def check_agreement(
    runtime: Runtime, reference: Reference, preprocessing: Preprocessing
) -> Agreement:
    """Runs the bundle's reference images.

    Raises:
        MultigrainError: CHECKPOINT if the outputs have other shapes than the reference's;
            UNSUPPORTED if they differ beyond the tolerance of the runtime's precision.
    """
    images = reference.images(preprocessing)
    got = runtime.run(images)
    for what, ours, theirs in (
        ("embeddings", got.embedding, reference.embedding),
        ("scores", got.logits, reference.logits),
    ):
        if ours.shape != theirs.shape:
            raise MultigrainError(
                ErrorKind.CHECKPOINT,
                f"the graph returns {what} of shape {ours.shape} for {len(images)} images, but "
                f"the bundle's reference has {theirs.shape}: export or import it again",
            )
    found = agreement(got, reference.embedding, reference.logits)
    if found.suffices(runtime.precision):
        return found
    least = MIN_COSINE.get(runtime.precision)
    bound = f"a cosine of {least:g}" if least is not None else f"differences of {MAX_DIFFERENCE:g}"
    raise MultigrainError(
        ErrorKind.UNSUPPORTED,
        f"{runtime.name} does not compute what the exported network does: cosine "
        f"{found.cosine:.5f}, components differ by {found.embedding:.2g} and scores by "
        f"{found.logits:.2g}; {runtime.precision} is refused beyond {bound}",
    )


def _unit(rows: FloatArray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
