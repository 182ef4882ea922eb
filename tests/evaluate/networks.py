"""A network whose outputs a test can compute with NumPy."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

# MindSpore 2.8 computes wrong results in several threads of a process at once (measured: 5
# batches of 480). Real workers are processes; only tests run them as threads.
_ONE_AT_A_TIME = threading.Lock()


class MeanColor(nn.Cell):
    """Embedding: mean of each quadrant and channel (12); logits: a fixed matrix times it."""

    embedding_size = 12

    def __init__(self, classes: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.matrix = np.random.default_rng(seed).normal(size=(12, classes)).astype(np.float32)
        self.weight = Tensor(self.matrix)
        self.mean = ops.ReduceMean()
        self.batch_sizes: list[int] = []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with _ONE_AT_A_TIME:
            outputs = super().__call__(*arguments, **options)
            for output in outputs:
                output.asnumpy()  # waits until it is computed
            return outputs

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.batch_sizes.append(images.shape[0])
        down, right = images.shape[2] // 2, images.shape[3] // 2
        quadrants = [
            self.mean(images[:, :, y : y + down, x : x + right], (2, 3))
            for y in (0, down)
            for x in (0, right)
        ]
        embedding = ops.concat(quadrants, 1)
        return embedding, ops.matmul(embedding, self.weight)

    def by_hand(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for one image (3, H, W), in NumPy."""
        down, right = image.shape[1] // 2, image.shape[2] // 2
        parts = [image[:, y : y + down, x : x + right].mean(axis=(1, 2))
                 for y in (0, down) for x in (0, right)]  # fmt: skip
        embedding = np.concatenate(parts).astype(np.float64)
        return embedding, embedding @ self.matrix


class Broken(nn.Cell):
    """Gives NaN for every second image of a batch."""

    embedding_size = 2

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        values = np.zeros((images.shape[0], 2), np.float32)
        values[::2] = np.nan
        return Tensor(values), Tensor(values)
