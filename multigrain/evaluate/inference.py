"""Images through the network, batch by batch: decoded ahead by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from mindspore import Tensor, jit, nn
from numpy.typing import NDArray

from multigrain.errors import MultigrainError
from multigrain.evaluate.batches import Batches, cut

FloatArray = NDArray[np.float32]
_Loaded = tuple[int, FloatArray]


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
        model: (N, 3, H, W) -> embedding, logits; put into evaluation mode while it is used.
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
        return self.run_batches(cut(indices, self.batch_size), load, unreadable)

    def run_batches(
        self,
        batches: Batches,
        load: Callable[[int], FloatArray],
        unreadable: dict[int, str],
    ) -> Iterator[Predictions]:
        """As ``run``, of batches that are given; images of a batch that differ in shape go
        through the network one shape after the other."""
        training = self.model.training
        self.model.set_train(False)
        try:
            done = 0
            for size, loaded in self._loaded(batches, load, unreadable):
                for part in _by_shape(loaded):
                    images = _stacked([image for _, image in part], batches.fill)
                    embedding, logits = self.model(Tensor(images))
                    yield Predictions(
                        np.array([index for index, _ in part], np.int64),
                        embedding.asnumpy()[: len(part)],
                        logits.asnumpy()[: len(part)],
                    )
                done += size
                if self.on_progress is not None:
                    self.on_progress(done)
        finally:
            self.model.set_train(training)

    def _loaded(
        self,
        batches: Batches,
        load: Callable[[int], FloatArray],
        unreadable: dict[int, str],
    ) -> Iterator[tuple[int, list[_Loaded]]]:
        """Each batch's size, and those of its images that could be loaded."""
        threads = self.threads or max(1, len(os.sched_getaffinity(0)) // self.world)
        ahead = 2 * self.batch_size
        waiting: deque[tuple[int, Future[FloatArray]]] = deque()
        coming = (index for batch in batches.indices for index in batch)
        with ThreadPoolExecutor(threads, thread_name_prefix="preprocess") as pool:
            try:
                for batch in batches.indices:
                    if self.should_stop is not None and self.should_stop():
                        return
                    for index in islice(coming, max(0, len(batch) + ahead - len(waiting))):
                        waiting.append((index, pool.submit(load, index)))
                    loaded = []
                    for _ in batch:
                        index, image = waiting.popleft()
                        try:
                            loaded.append((index, image.result()))
                        except MultigrainError as error:
                            unreadable[index] = error.message
                    yield len(batch), loaded
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _by_shape(loaded: list[_Loaded]) -> list[list[_Loaded]]:
    parts: dict[tuple[int, ...], list[_Loaded]] = {}
    for index, image in loaded:
        parts.setdefault(image.shape, []).append((index, image))
    return list(parts.values())


def _stacked(images: list[FloatArray], fill: int) -> FloatArray:
    """One array; of ``fill`` images, the missing ones zero: one shape, one compiled graph."""
    result = np.zeros((max(fill, len(images)), *images[0].shape), np.float32)
    for slot, image in enumerate(images):
        result[slot] = image
    return result
