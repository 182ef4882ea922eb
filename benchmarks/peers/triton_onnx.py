"""PyTriton with dynamic batching, ONNX Runtime float32 and Pillow.

``python triton_onnx.py MODEL_ONNX PORT`` in an environment with nvidia-pytriton, onnxruntime,
pillow and numpy. Imports nothing from this repository, which is not installed there.
"""

from __future__ import annotations

import io
import os
import sys

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

SIZE, SHORT = 224, 256
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def prepare(data: bytes) -> NDArray[np.float32]:
    """The same preprocessing as ``multigrain.images.preprocess``."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    side = min(width, height) * SIZE / SHORT
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    return ((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    @batch
    def infer(image: NDArray[np.object_]) -> list[NDArray[np.float32]]:
        images = np.stack([prepare(row[0]) for row in image])
        vectors = session.run(["embedding"], {"images": images})[0]
        return [vectors / np.linalg.norm(vectors, axis=1, keepdims=True)]

    port = int(sys.argv[2])
    config = TritonConfig(grpc_port=port, http_port=port + 1, metrics_port=port + 2)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="resnet50",
            infer_func=infer,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="embedding", dtype=np.float32, shape=(2048,))],
            config=ModelConfig(
                max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=1000)
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
