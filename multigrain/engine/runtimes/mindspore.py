"""The MindSpore runtime: the reference, on every device that MindSpore supports."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from multigrain.bundle.folder import read_file
from multigrain.bundle.manifest import Head
from multigrain.engine.runtimes.base import Bundle, Compute, FloatArray, Outputs, Runtime, padded
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.kernels import limit_instructions
from multigrain.tensors import parse_tensors

if TYPE_CHECKING:
    from multigrain.model.multigrain import MultiGrain


log = logging.getLogger(__name__)

_TARGETS = {"cpu": "CPU", "gpu": "GPU", "ascend": "Ascend"}


class MindSporeRuntime(Runtime):
    """The network, built from the bundle's weights and compiled as a graph.

    MindSpore compiles a graph for each shape, which takes seconds. Batches are therefore padded
    to a few sizes, which are compiled before the first request.

    Args:
        bundle: has the weights.
        head: resolution and GeM exponent.
        compute: device, threads and batch size.
        shared: runtime of another head of the same bundle, whose weights this one shares.

    Raises:
        MultigrainError: CHECKPOINT if the weights do not fit the network.
    """

    def __init__(
        self,
        bundle: Bundle,
        head: Head,
        compute: Compute,
        shared: MindSporeRuntime | None = None,
    ) -> None:
        if compute.threads and compute.device == "cpu":
            # The library reads it when it is loaded.
            os.environ["OMP_NUM_THREADS"] = str(compute.threads)
        if compute.device == "cpu" and (limited := limit_instructions()):
            log.info("%s", limited)
        # Imported late: it takes seconds and 300 MB, and only this runtime needs it.
        import mindspore
        from mindspore import Tensor, context

        from multigrain.model.multigrain import GemOverride

        if compute.threads:
            usual = mindspore.get_context("runtime_num_threads")
            mindspore.set_context(runtime_num_threads=min(usual, compute.threads))
        mindspore.set_device(_TARGETS[compute.device])
        context.set_context(mode=context.GRAPH_MODE)
        weights = shared._weights if shared is not None else _network(bundle)
        self._weights: MultiGrain = weights
        # p is a constant in serving, even if it was learned; the head has its value.
        self._network = GemOverride(weights, head.gem_p)
        self._network.set_train(False)
        self._tensor = Tensor
        self.preprocessing = head.preprocessing
        self._sizes = _batch_sizes(compute.max_batch)
        self.name = f"mindspore {mindspore.__version__} {compute.device} f32"
        self.best_batch = compute.max_batch  # one graph for each size: the largest wastes least
        self.warm_sizes = self._sizes

    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        size = next(size for size in self._sizes if size >= len(images))
        embedding, logits = self._network(self._tensor(padded(images, size)))
        return Outputs(
            np.asarray(embedding.asnumpy()[: len(images)]),
            np.asarray(logits.asnumpy()[: len(images)]),
        )


def _network(bundle: Bundle) -> MultiGrain:
    from multigrain.model.multigrain import build_model
    from multigrain.model.state import load_model_state

    manifest = bundle.manifest
    classes = manifest.classes
    network = build_model(manifest.model.model_copy(update={"learn_gem_p": False}), classes)
    # Checked again, because they are read again after the daemon has verified them.
    data = read_file(bundle.path, manifest, manifest.weights)
    try:
        tensors = parse_tensors(data)
    except ValueError as error:
        raise MultigrainError(
            ErrorKind.CHECKPOINT,
            f"the bundle's {manifest.weights} cannot be used: {error}. Export or import it again",
        ) from error
    load_model_state(network, tensors)
    return network


def _batch_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 4, 16, ... and the largest: padding at most quadruples a batch."""
    sizes = {1, max_batch}
    size = 4
    while size < max_batch:
        sizes.add(size)
        size *= 4
    return tuple(sorted(sizes))
