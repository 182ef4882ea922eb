"""Which images go through the network together."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from mindspore import Tensor, jit, nn, ops
from numpy.typing import NDArray
from PIL import Image

from multigrain.data.image_folder import ImageFolder
from multigrain.errors import MultigrainError
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.images.decode import decode_image, image_size
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess_image, preprocess_rect, rect_size
from multigrain.model.multigrain import MultiGrain
from multigrain.weights.restore import RestoredModel
from multigrain.whitening import StoredWhitening, read_whitening


@dataclass(frozen=True)
class Batches:
    """A worker's share of the images, batch by batch.

    Args:
        indices: of the images of each batch.
        fill: every batch is filled up to so many images, so that all have one shape; 0 = not.
    """

    indices: Sequence[Sequence[int]]
    fill: int = 0

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.indices)


def crop_batches(images: int, batch_size: int, rank: int, world: int) -> Batches:
    """Images of one shape: every ``world``-th one, ``batch_size`` at a time, filled up."""
    return cut(range(rank, images, world), batch_size)


def cut(indices: Sequence[int], batch_size: int) -> Batches:
    """``batch_size`` at a time, filled up."""
    starts = range(0, len(indices), batch_size)
    return Batches([indices[start : start + batch_size] for start in starts], fill=batch_size)


def rect_batches(
    folder: ImageFolder,
    largest: int,
    batch_size: int,
    *,
    rank: int,
    world: int,
    all_reduce: AllReduce,
    threads: int = 2,
    alive: Callable[[], None] = lambda: None,
) -> Batches:
    """Images of many shapes: those of one shape next to each other, one shape a batch.

    The batches are the same for any number of workers, which take them in turn: so are the sums
    that a convolution forms, and the figures to the last bit. Only headers are read for it.
    Collective.

    Args:
        folder: the images.
        largest: side that the larger side of each is scaled to.
        batch_size: images of a batch at most.
        rank, world: whose share.
        all_reduce: puts the sizes that the workers have read together.
        threads: that read.
        alive: called now and then.
    """
    sizes = np.zeros((len(folder), 2), np.float32)

    def read(index: int) -> None:
        # An unreadable one keeps size 0 x 0, and is reported when its turn comes.
        with suppress(MultigrainError):
            sizes[index] = rect_size(*image_size(folder.read(index)), largest)

    with ThreadPoolExecutor(threads, thread_name_prefix="sizes") as pool:
        for _ in pool.map(read, range(rank, len(folder), world)):
            alive()
    sizes = all_reduce.sum(sizes)
    order = np.lexsort((np.arange(len(folder)), sizes[:, 1], sizes[:, 0]))
    batches: list[list[int]] = []
    for index in order.tolist():
        last = batches[-1] if batches else []
        if not last or len(last) == batch_size or (sizes[last[0]] != sizes[index]).any():
            batches.append([index])
        else:
            last.append(index)
    return Batches(batches[rank::world])


# MERGED: How the images of an evaluation become what the network sees.


@dataclass(frozen=True)
class Transform:
    """
    Args:
        preprocessing: sizes, interpolation and normalization.
        kind: "crop": the short side scaled, the center cut: all images have one shape. "rect":
            the largest side scaled to ``preprocessing.size``, nothing cut: many shapes.
    """

    preprocessing: Preprocessing
    kind: Literal["crop", "rect"] = "crop"

    def image(self, image: Image.Image) -> FloatArray:
        """A decoded image as float32 (3, H, W)."""
        if self.kind == "rect":
            return preprocess_rect(image, self.preprocessing)
        return preprocess_image(image, self.preprocessing)

    def file(self, folder: ImageFolder, index: int) -> FloatArray:
        """An image of a folder as float32 (3, H, W).

        Raises:
            MultigrainError: IMAGE_*.
        """
        return self.image(decode_image(folder.read(index)))

    def batches(
        self,
        folder: ImageFolder,
        batch_size: int,
        *,
        rank: int,
        world: int,
        all_reduce: AllReduce,
        threads: int = 0,
        alive: Callable[[], None] = lambda: None,
    ) -> Batches:
        """A worker's share of the images of a folder. Collective for "rect"."""
        if self.kind == "crop":
            return crop_batches(len(folder), batch_size, rank, world)
        return rect_batches(
            folder,
            self.preprocessing.size,
            batch_size,
            rank=rank,
            world=world,
            all_reduce=all_reduce,
            threads=threads or 2,
            alive=alive,
        )


# MERGED: A network whose embedding is whitened.


class Whitened(nn.Cell):
    """(N, 3, H, W) -> phi (N, D), not normalized, and the network's logits (N, K).

    ``phi = ([e; 1] / |[e; 1]| - mean) @ projection``, D = C + 1, float32, as in serving.
    """

    def __init__(self, network: MultiGrain, whitening: StoredWhitening) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.embedding_size = whitening.size
        self.mean = Tensor(whitening.mean)
        self.projection = Tensor(whitening.projection)

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding, logits = self.network(images)
        rows = ops.concat((embedding, ops.ones_like(embedding[:, :1])), 1)
        rows = rows / ops.sqrt(ops.square(rows).sum(1, keepdims=True))
        return ops.matmul(rows - self.mean, self.projection), logits


def whitened(restored: RestoredModel, bundle: Path, resolution: int) -> Whitened:
    """The network with the whitening that its bundle carries at a resolution (0 = its default).

    Raises:
        MultigrainError: INVALID_FIELD "spec.whiten" if it carries none, CHECKPOINT if it is
            damaged.
    """
    head = restored.weights.head(resolution)
    if head is None or head.whitening is None:
        where = f" at {resolution} px" if resolution else ""
        raise MultigrainError.field(
            "spec.whiten",
            f"the model carries no whitening{where}: leave it out, or export the model with "
            "whitening_path",
        )
    stored = read_whitening(bundle / head.whitening.file, restored.network.embedding_size)
    return Whitened(restored.network, stored)


# MERGED: Images through the network, batch by batch: decoded ahead by threads.


FloatArray = NDArray[np.float32]
_Loaded = tuple[int, FloatArray]


@dataclass(frozen=True)
class Predictions:
    """What the network says of some images.

    Args:
        indices: (n,) of the images in the dataset.
        embedding: (n, C), not normalized.
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
