"""The OpenVINO runtime: the fastest on CPUs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.bundle.reference import Precision
from multigrain.engine.runtimes.base import (
    Compute,
    FloatArray,
    Outputs,
    Pixels,
    Runtime,
    full_batch,
)
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.memory import is_out_of_memory

# Importing openvino sends telemetry over the network, unless this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402
import openvino.opset13 as opset  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402


class OpenVinoRuntime(Runtime):
    """An ONNX graph with input ``images`` and outputs ``embedding`` and ``logits``.

    It uses one stream over all threads: this gives a single image the lowest latency, and at
    ``best_batch`` the throughput was within 4 % of one stream per core (which doubles the memory).
    OpenVINO compiles kernels for a batch size when it first occurs and keeps them: batches are
    split to ``best_batch``, and every size up to it runs before the first request.

    The classifier is a graph of its own that runs only for batches with scores: for a single
    image, reading the classifier's weights takes a twentieth of the time.

    The compiled network takes pixels, channels last, and normalizes them itself: its first layer
    needs that layout, and copying bytes costs a fraction of normalizing them outside.

    Args:
        path: the graph; for int8 the quantized one.
        preprocessing: of its images.
        compute: number of threads and batch size; the device is the CPU.
        precision: "bf16" computes in bfloat16; "int8" computes quantized layers in 8 bits, and
            the others in bfloat16 if the CPU supports it.

    Raises:
        MultigrainError: UNSUPPORTED if OpenVINO cannot load the graph, or the CPU lacks bfloat16.
    """

    def __init__(
        self, path: Path, preprocessing: Preprocessing, compute: Compute, precision: Precision
    ) -> None:
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                "this CPU has no bfloat16 instructions (AMX or AVX-512 BF16): use openvino-f32",
            )
        options = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" or not has_bf16 else "bf16",
            "NUM_STREAMS": 1,
            # Decoding threads and the engines of other models share the cores.
            "ENABLE_CPU_PINNING": False,
        }
        if compute.threads:
            options["INFERENCE_NUM_THREADS"] = compute.threads
        # Of pixel values from 0 to 255, by channel.
        self._mean = 255 * np.array(preprocessing.mean, np.float32)
        self._std = 255 * np.array(preprocessing.std, np.float32)
        try:
            trunk, head = split_at_embedding(self._read(core, path))
            network = core.compile_model(trunk, "CPU", options)
            classifier = core.compile_model(head, "CPU", options) if head is not None else None
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise  # no reason to try another runtime
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"openvino cannot load {path.name}: {str(error).strip().splitlines()[-1]}",
            ) from error
        self._request = network.create_infer_request()
        self._classifier = classifier.create_infer_request() if classifier is not None else None
        version = openvino.__version__.partition("-")[0]
        self.name = f"openvino {version} {compute.device} {precision}"
        self.precision = precision
        self.preprocessing = preprocessing
        self.best_batch = full_batch(preprocessing.size, compute)
        self.warm_sizes = tuple(range(1, self.best_batch + 1))
        # Reused: the system would map and clear a new block of this size for each batch.
        side = preprocessing.size
        self._input = np.empty((self.best_batch, side, side, 3), np.float32)

    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        return self._run(images.transpose(0, 2, 3, 1) * self._std + self._mean, scores)

    def run_pixels(self, images: Sequence[Pixels], *, scores: bool = True) -> Outputs:
        return self._run(images, scores)

    def _read(self, core: openvino.Core, path: Path) -> openvino.Model:
        steps = PrePostProcessor(core.read_model(path))
        images = steps.input("images")
        images.tensor().set_layout(openvino.Layout("NHWC"))
        images.model().set_layout(openvino.Layout("NCHW"))
        images.preprocess().mean(self._mean.tolist()).scale(self._std.tolist())
        return steps.build()

    def _run(self, images: Sequence[NDArray[np.generic]] | FloatArray, scores: bool) -> Outputs:
        """Computes images (S, S, 3) with values from 0 to 255."""
        parts = [
            self._batch(images[start : start + self.best_batch], scores)
            for start in range(0, len(images), self.best_batch)
        ]
        if len(parts) == 1:
            return parts[0]
        return Outputs(
            np.concatenate([part.embedding for part in parts]),
            np.concatenate([part.logits for part in parts]),
        )

    def _batch(self, images: Sequence[NDArray[np.generic]] | FloatArray, scores: bool) -> Outputs:
        batch = self._input[: len(images)]
        for row, image in zip(batch, images, strict=True):
            row[:] = image
        # The input is not copied; the outputs are, since the next batch overwrites them.
        results = self._request.infer({0: batch}, share_inputs=True)
        embedding = results["embedding"]
        if self._classifier is None:
            return Outputs(embedding, results["logits"])
        if not scores:
            return Outputs(embedding, np.empty((len(images), 0), np.float32))
        return Outputs(embedding, self._classifier.infer([embedding], share_inputs=True)["logits"])


def split_at_embedding(model: openvino.Model) -> tuple[openvino.Model, openvino.Model | None]:
    """Splits a graph at its embedding: images to embedding, and embedding to logits.

    Args:
        model: with outputs ``embedding`` and ``logits``; must not be used afterwards.

    Returns:
        Both parts; or the whole graph and None, if its logits depend on more than the embedding.
    """
    results = {name: model.output(name).get_node() for name in ("embedding", "logits")}
    embedding = results["embedding"].input_value(0)
    between = _between(results["logits"], embedding.get_node())
    if between is None:
        return model, None
    start = opset.parameter(embedding.partial_shape, embedding.element_type)
    for target in embedding.get_target_inputs():
        if target.get_node().get_name() in between:
            target.replace_source_output(start.output(0))
    return (
        openvino.Model([results["embedding"]], model.get_parameters()),
        openvino.Model([results["logits"]], [start]),
    )


def _between(end: openvino.Node, start: openvino.Node) -> set[str] | None:
    """Names of the nodes between ``start`` and ``end``; None if ``end`` has other inputs."""
    found: set[str] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        name = node.get_name()
        if name == start.get_name() or name in found:
            continue
        if node.get_type_name() == "Parameter":
            return None
        found.add(name)
        waiting += [value.get_node() for value in node.input_values()]
    return found
