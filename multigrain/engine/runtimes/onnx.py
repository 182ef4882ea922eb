"""The ONNX Runtime runtime: portable, and the fastest on Nvidia GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from multigrain.engine.runtimes.base import (
    Compute,
    FloatArray,
    Outputs,
    Runtime,
    full_batch,
    padded,
)
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.memory import is_out_of_memory


class OnnxRuntime(Runtime):
    """An ONNX graph with input ``images`` and outputs ``embedding`` and ``logits``.

    Raises:
        MultigrainError: UNSUPPORTED if ONNX Runtime cannot load the graph on this device.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing, compute: Compute) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = compute.threads
        options.inter_op_num_threads = 1
        # Threads that spin between batches would take cores from the decoding threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if compute.device == "gpu":
            providers.insert(0, "CUDAExecutionProvider")
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise MultigrainError(
                    ErrorKind.UNSUPPORTED,
                    "this onnxruntime has no CUDA support: install onnxruntime-gpu, "
                    "or use the mindspore runtime or the cpu device",
                )
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions have no common base class
            if is_out_of_memory(error):
                raise  # no reason to try another runtime
            raise MultigrainError(
                ErrorKind.UNSUPPORTED, f"onnxruntime cannot load {path.name}: {error}"
            ) from error
        batch = self._session.get_inputs()[0].shape[0]
        self._fixed = batch if isinstance(batch, int) else 0
        self.name = f"onnxruntime {onnxruntime.__version__} {compute.device} f32"
        self.preprocessing = preprocessing
        self.best_batch = full_batch(preprocessing.size, compute)
        self.warm_sizes = (self._fixed,) if self._fixed else (1, compute.max_batch)

    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        if not self._fixed:
            return Outputs(*self._session.run(["embedding", "logits"], {"images": images}))
        parts = [
            self._run_fixed(images[start : start + self._fixed])
            for start in range(0, len(images), self._fixed)
        ]
        return Outputs(
            np.concatenate([part.embedding for part in parts]),
            np.concatenate([part.logits for part in parts]),
        )

    def _run_fixed(self, images: FloatArray) -> Outputs:
        embedding, logits = self._session.run(
            ["embedding", "logits"], {"images": padded(images, self._fixed)}
        )
        return Outputs(embedding[: len(images)], logits[: len(images)])
