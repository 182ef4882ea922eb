"""Runs a loaded network before the first request: to compile, to allocate and to check it."""

from __future__ import annotations

import numpy as np

from multigrain.bundle.reference import MAX_DIFFERENCE, MIN_COSINE, Agreement, Reference, agreement
from multigrain.engine.runtimes.base import Runtime
from multigrain.errors import ErrorKind, MultigrainError


def warm_up(runtime: Runtime, resolution: int, embedding_size: int, classes: int) -> None:
    """Computes one batch of each size in ``runtime.warm_sizes``.

    Args:
        runtime: to warm up.
        resolution: of its images.
        embedding_size: according to the bundle.
        classes: according to the bundle; 0 = unknown.

    Raises:
        MultigrainError: CHECKPOINT if an output has another shape than the bundle declares, or
            non-finite numbers.
    """
    rng = np.random.default_rng(0)
    for size in runtime.warm_sizes:
        images = rng.standard_normal((size, 3, resolution, resolution), dtype=np.float32)
        outputs = runtime.run(images)
        if outputs.embedding.shape != (size, embedding_size):
            raise MultigrainError(
                ErrorKind.CHECKPOINT,
                f"the graph returns embeddings of shape {outputs.embedding.shape} for a batch "
                f"of {size} images, but the bundle declares {embedding_size} numbers per image",
            )
        if outputs.logits.ndim != 2 or (classes and outputs.logits.shape[1] != classes):
            raise MultigrainError(
                ErrorKind.CHECKPOINT,
                f"the graph returns scores of shape {outputs.logits.shape}, "
                f"but the bundle has {classes} classes",
            )
        if not (np.isfinite(outputs.embedding).all() and np.isfinite(outputs.logits).all()):
            raise MultigrainError(
                ErrorKind.CHECKPOINT,
                "the model's output for a test image is non-finite: the weights are damaged",
            )


def check_agreement(
    runtime: Runtime, reference: Reference, least: float | None = None
) -> Agreement:
    """Computes the bundle's reference images and compares the outputs.

    Args:
        runtime: to check.
        reference: of the bundle.
        least: smallest cosine; None = that of the runtime's precision.

    Raises:
        MultigrainError: CHECKPOINT if the outputs have other shapes than the reference;
            UNSUPPORTED if they differ by more than the runtime's precision explains.
    """
    images = list(reference.pixels)
    size = max(runtime.warm_sizes)
    parts = [
        runtime.run_pixels(images[start : start + size]) for start in range(0, len(images), size)
    ]
    embedding = np.concatenate([part.embedding for part in parts])
    logits = np.concatenate([part.logits for part in parts])
    for what, ours, theirs in (
        ("embeddings", embedding, reference.embedding),
        ("scores", logits, reference.logits),
    ):
        if ours.shape != theirs.shape:
            raise MultigrainError(
                ErrorKind.CHECKPOINT,
                f"the graph returns {what} of shape {ours.shape} for {len(images)} images, but "
                f"the bundle's reference outputs have {theirs.shape}: export or import it again",
            )
    found = agreement(embedding, logits, reference)
    if found.suffices(runtime.precision, least):
        return found
    least = MIN_COSINE.get(runtime.precision) if least is None else least
    bound = f"a cosine of {least:g}" if least is not None else f"differences of {MAX_DIFFERENCE:g}"
    raise MultigrainError(
        ErrorKind.UNSUPPORTED,
        f"the outputs of {runtime.name} differ from the exported network's: cosine "
        f"{found.cosine:.5f}, components differ by {found.embedding:.2g} and scores by "
        f"{found.logits:.2g}; the limit for {runtime.precision} is {bound}",
    )
