"""Batched inference: preprocessing, batches of one shape, and the forward pass."""

from __future__ import annotations

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
from multigrain.files import Roots
from multigrain.images.decode import decode_image, image_size
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess_image, preprocess_rect, rect_size
from multigrain.machine import available_cpus
from multigrain.model.multigrain import MultiGrain
from multigrain.weights.restore import RestoredModel
from multigrain.whitening import StoredWhitening, read_whitening

FloatArray = NDArray[np.float32]
_Loaded = tuple[int, FloatArray]


@dataclass(frozen=True)
class Batches:
    """A worker's images, batch by batch.

    Args:
        indices: indices of the images of each batch.
        fill: number of images to which every batch is padded, so that all have one shape; 0 = no
            padding.
    """

    indices: Sequence[Sequence[int]]
    fill: int = 0

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.indices)


def crop_batches(images: int, batch_size: int, rank: int, world: int) -> Batches:
    """Returns this worker's batches of images of one shape: every ``world``-th image."""
    return split_batches(range(rank, images, world), batch_size)


def split_batches(indices: Sequence[int], batch_size: int) -> Batches:
    """Splits images of one shape into padded batches."""
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
    """Groups images of many shapes into batches of one shape each. Collective.

    The batches are the same for any number of workers, which take them in rotation; so are the
    results of the convolutions, to the last bit. Only the images' headers are read.

    Args:
        folder: the images.
        largest: length in pixels to which the larger side of each image is scaled.
        batch_size: most images per batch.
        rank, world: this worker, and the number of workers.
        all_reduce: sums over the workers.
        threads: threads that read headers.
        alive: called after each image.
    """
    sizes = np.zeros((len(folder), 2), np.float32)

    def read(index: int) -> None:
        # An unreadable image keeps size 0 x 0, and is reported when it is decoded.
        with suppress(MultigrainError):
            sizes[index] = rect_size(*image_size(folder.read(index), folder.limits), largest)

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


@dataclass(frozen=True)
class Transform:
    """Preprocessing of the images of an evaluation.

    Args:
        preprocessing: sizes, interpolation and normalization.
        kind: "crop": the short side is scaled and the center cropped; all images have one shape.
            "rect": the larger side is scaled to ``preprocessing.size`` without a crop; there are
            many shapes.
    """

    preprocessing: Preprocessing
    kind: Literal["crop", "rect"] = "crop"

    def image(self, image: Image.Image) -> FloatArray:
        """Preprocesses a decoded image to float32 (3, H, W)."""
        if self.kind == "rect":
            return preprocess_rect(image, self.preprocessing)
        return preprocess_image(image, self.preprocessing)

    def file(self, folder: ImageFolder, index: int) -> FloatArray:
        """Reads and preprocesses an image of a folder to float32 (3, H, W).

        Raises:
            MultigrainError: IMAGE_*.
        """
        return self.image(decode_image(folder.read(index), folder.limits))

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
        """Returns a worker's batches of a folder's images. Collective for "rect"."""
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


class WhitenedModel(nn.Cell):
    """A network with whitened embeddings: (N, 3, H, W) -> phi (N, D) and logits (N, K).

    ``phi = ([e; 1] / |[e; 1]| - mean) @ projection``, D = C + 1, float32, not normalized, as in
    serving.

    Args:
        network: images -> embedding e (N, C), logits.
        whitening: of the network's embedding.
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


def whitened(
    restored: RestoredModel, bundle: Path, resolution: int, roots: Roots = None
) -> WhitenedModel:
    """Adds the whitening that a bundle has for a resolution (0 = its default) to its network.

    Raises:
        MultigrainError: INVALID_FIELD "spec.whiten", if it has none; CHECKPOINT, if it is
            damaged.
    """
    head = restored.weights.head(resolution)
    if head is None or head.whitening is None:
        where = f" at {resolution} px" if resolution else ""
        raise MultigrainError.field(
            "spec.whiten",
            f"the model has no whitening{where}: set it to false, or export the model with "
            "whitening_path",
        )
    stored = read_whitening(bundle / head.whitening.file, restored.network.embedding_size, roots)
    return WhitenedModel(restored.network, stored)


@dataclass(frozen=True)
class Predictions:
    """The network's outputs for a batch of images.

    Args:
        indices: (n,), indices of the images in the dataset.
        embedding: (n, C), not normalized.
        logits: (n, K).
    """

    indices: NDArray[np.int64]
    embedding: FloatArray
    logits: FloatArray


class CompiledModel(nn.Cell):
    """A network as one compiled graph, which is faster for many batches of one shape."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    @jit
    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding, logits = self.network(images)
        return embedding, logits


@dataclass
class Inference:
    """Runs a network on images that threads load ahead.

    Args:
        model: (N, 3, H, W) -> embedding, logits; set to evaluation mode while it runs.
        batch_size: images per forward pass.
        rank, world: this worker takes every ``world``-th image, from the ``rank``-th on.
        threads: threads that load images; 0 = this worker's share of the cores.
        on_progress: called after each batch with the number of this worker's images done.
        should_stop: called before each batch; true skips the rest.
    """

    model: nn.Cell
    batch_size: int
    rank: int = 0
    world: int = 1
    threads: int = 0
    on_progress: Callable[[int], None] | None = None
    should_stop: Callable[[], bool] | None = None

    def shard(self, images: int) -> range:
        """Returns the indices of this worker's images."""
        return range(self.rank, images, self.world)

    def run(
        self,
        indices: Sequence[int],
        load: Callable[[int], FloatArray],
        unreadable: dict[int, str],
    ) -> Iterator[Predictions]:
        """Yields the predictions for images of one shape, batch by batch.

        The last batch is padded; the padding's outputs are dropped.

        Args:
            indices: of the images.
            load: index -> float32 (3, S, S); called in threads, may raise MultigrainError.
            unreadable: receives the images that raised, index -> reason; they have no prediction.
        """
        return self.run_batches(split_batches(indices, self.batch_size), load, unreadable)

    def run_batches(
        self,
        batches: Batches,
        load: Callable[[int], FloatArray],
        unreadable: dict[int, str],
    ) -> Iterator[Predictions]:
        """Like :meth:`run`, for given batches.

        Images of a batch that differ in shape have a forward pass for each shape.
        """
        training = self.model.training
        self.model.set_train(False)
        try:
            done = 0
            for size, loaded in self._loaded(batches, load, unreadable):
                for part in _group_by_shape(loaded):
                    images = _pad_batch([image for _, image in part], batches.fill)
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
        """Yields each batch's size and its readable images."""
        threads = self.threads or max(1, available_cpus() // self.world)
        ahead = 2 * self.batch_size
        pending: deque[tuple[int, Future[FloatArray]]] = deque()
        upcoming = (index for batch in batches.indices for index in batch)
        with ThreadPoolExecutor(threads, thread_name_prefix="preprocess") as pool:
            try:
                for batch in batches.indices:
                    if self.should_stop is not None and self.should_stop():
                        return
                    for index in islice(upcoming, max(0, len(batch) + ahead - len(pending))):
                        pending.append((index, pool.submit(load, index)))
                    loaded = []
                    for _ in batch:
                        index, image = pending.popleft()
                        try:
                            loaded.append((index, image.result()))
                        except MultigrainError as error:
                            unreadable[index] = error.message
                    yield len(batch), loaded
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _group_by_shape(loaded: list[_Loaded]) -> list[list[_Loaded]]:
    parts: dict[tuple[int, ...], list[_Loaded]] = {}
    for index, image in loaded:
        parts.setdefault(image.shape, []).append((index, image))
    return list(parts.values())


def _pad_batch(images: list[FloatArray], fill: int) -> FloatArray:
    """Stacks images and pads them with zeros to ``fill`` images: one shape, one compiled graph."""
    result = np.zeros((max(fill, len(images)), *images[0].shape), np.float32)
    for slot, image in enumerate(images):
        result[slot] = image
    return result
