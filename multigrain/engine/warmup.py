"""Runs a network before the first request: compiles, allocates and checks it."""

from __future__ import annotations

import numpy as np

from multigrain.engine.runtime.base import Runtime
from multigrain.errors import ErrorKind, MultigrainError


def warm_up(runtime: Runtime, resolution: int, embedding_size: int, classes: int) -> None:
    """Computes one batch of each size in ``runtime.warm_sizes``.

    Raises:
        MultigrainError: CHECKPOINT if an output has another shape than the bundle says
            (``classes`` 0 = not checked), or is not finite.
    """
    rng = np.random.default_rng(0)
    for size in runtime.warm_sizes:
        images = rng.standard_normal((size, 3, resolution, resolution), dtype=np.float32)
        outputs = runtime.run(images)
        if outputs.embedding.shape != (size, embedding_size):
            raise MultigrainError(
                ErrorKind.CHECKPOINT,
                f"the graph returns embeddings of shape {outputs.embedding.shape} for a batch "
                f"of {size}, but the bundle says {embedding_size} numbers an image",
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
                "the model's output on a test image is not finite: the weights are damaged",
            )
