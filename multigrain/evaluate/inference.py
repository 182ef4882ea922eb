"""Images through the network: decoded ahead by threads, in batches of one size."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, jit, nn
from numpy.typing import NDArray

from multigrain.errors import MultigrainError

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """What the network says of some images.

    Args:
        indices: (n,) of the images in the dataset.
        embedding: (n, C), not normalised.
        logits: (n, K).
    """

    indices: NDArray[np.int64]
    embedding: FloatArray
    logits: FloatArray


class Compiled(nn.Cell):
    """A network as one compiled graph: faster where many batches follow."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    @jit
    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding, logits = self.network(images)
        return embedding, logits


@dataclass
class Inference:
    """How images go through a network.

    Args:
        model: (N, 3, S, S) -> embedding, logits; put into evaluation mode while it is used.
        batch_size: images of one forward pass.
        rank, world: this worker takes every ``world``-th image from the ``rank``-th on.
        threads: that load images; 0 = this worker's share of the cores.
        on_progress: told after each batch how many images of this worker are done.
        should_stop: asked before each batch; if true, the rest is left out.
    """

    model: nn.Cell
    batch_size: int
    rank: int = 0
    world: int = 1
    threads: int = 0
    on_progress: Callable[[int], None] | None = None
    should_stop: Callable[[], bool] | None = None

    def share(self, images: int) -> range:
        """The images of this worker."""
        return range(self.rank, images, self.world)

    def run(
        self,
        indices: Sequence[int],
        load: Callable[[int], FloatArray],
        unreadable: dict[int, str],
    ) -> Iterator[Predictions]:
        """Predictions batch by batch; the last one is filled up, and the filling cut off.

        Args:
            indices: of the images.
            load: index -> float32 (3, S, S); called in threads, may raise MultigrainError.
            unreadable: takes the images that raised, index -> reason; they are left out.
        """
        training = self.model.training
        self.model.set_train(False)
        try:
            done = 0
            for batch, numbers in self._batches(indices, load, unreadable):
                if numbers:
                    images = _filled(batch, self.batch_size)
                    embedding, logits = self.model(Tensor(images))
                    yield Predictions(
                        np.array(numbers, np.int64),
                        embedding.asnumpy()[: len(numbers)],
                        logits.asnumpy()[: len(numbers)],
                    )
                done += self.batch_size
                if self.on_progress is not None:
                    self.on_progress(min(done, len(indices)))
        finally:
            self.model.set_train(training)

    def _batches(
        self,
        indices: Sequence[int],
        load: Callable[[int], FloatArray],
        unreadable: dict[int, str],
    ) -> Iterator[tuple[list[FloatArray], list[int]]]:
        threads = self.threads or max(1, len(os.sched_getaffinity(0)) // self.world)
        ahead = 2 * self.batch_size
        waiting: deque[tuple[int, Future[FloatArray]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="preprocess") as pool:
            try:
                begun = 0
                for start in range(0, len(indices), self.batch_size):
                    if self.should_stop is not None and self.should_stop():
                        return
                    end = min(start + self.batch_size, len(indices))
                    while begun < min(end + ahead, len(indices)):
                        index = indices[begun]
                        waiting.append((index, pool.submit(load, index)))
                        begun += 1
                    batch, numbers = [], []
                    for _ in range(start, end):
                        index, image = waiting.popleft()
                        try:
                            batch.append(image.result())
                            numbers.append(index)
                        except MultigrainError as error:
                            unreadable[index] = error.message
                    yield batch, numbers
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _filled(batch: list[FloatArray], size: int) -> FloatArray:
    """One array of ``size`` images, the missing ones zero: one shape, one compiled graph."""
    images = np.zeros((size, *batch[0].shape), np.float32)
    for slot, image in enumerate(batch):
        images[slot] = image
    return images
