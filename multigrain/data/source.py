"""Loading of augmented batches by a pool of threads, with a cache of decoded images."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.data.augment import Augmenter
from multigrain.data.image_folder import ImageFolder
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode_image, image_size
from multigrain.machine import available_memory
from multigrain.text import printable

# Bytes over all workers: so many, or so large a part of the memory.
_BUDGET = 512 * 2**20
_BUDGET_PART = 8
_SAMPLES = 64  # files whose headers estimate a dataset's size in memory
_SHOWN = 5  # most files that an error message lists
_SUBSTITUTES = 32  # attempts to find a substitute for an unreadable image


class DecodedCache:
    """Caches decoded images up to a number of bytes, without eviction. Thread-safe.

    Decoding is a third of the loader's work for small images (measured: 3,800 against 7,400 views
    of 48 px per second on one thread).

    Args:
        budget: most bytes of decoded images; 0 turns the cache off.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._images: dict[int, Image.Image] = {}

    def get(self, index: int) -> Image.Image | None:
        """Returns an image, or None if it is not cached."""
        return self._images.get(index)

    def put(self, index: int, image: Image.Image) -> None:
        """Adds an RGB image if there is room. It must not be modified afterwards."""
        size = 3 * image.width * image.height
        # Two threads may both find room for the last image: the budget is not a hard limit.
        if size <= self._left and index not in self._images:
            self._left -= size
            self._images[index] = image


def create_cache(folder: ImageFolder, world: int, budget: int | None = None) -> DecodedCache:
    """Creates a cache, turned off unless a worker's share of the budget holds the whole dataset.

    Over the epochs every worker sees every image. The size is estimated from the headers of some
    files. Caching only a part would gain little for the memory.

    Args:
        folder: the dataset.
        world: number of workers.
        budget: bytes over all workers; None = 512 MiB, but at most an eighth of the memory that
            this machine or container allows.
    """
    if budget is None:
        budget = min(_BUDGET, available_memory() // _BUDGET_PART)
    step = max(1, len(folder) // _SAMPLES)
    sizes = [_pixels(folder, index) * 3 for index in range(0, len(folder), step)]
    estimate = sum(sizes) / len(sizes) * len(folder)
    share = budget // world
    return DecodedCache(share if estimate <= share else 0)


def _pixels(folder: ImageFolder, index: int) -> int:
    try:
        width, height = image_size(folder.read(index), folder.limits)
        return width * height
    except MultigrainError:
        return 0  # an unreadable file is reported when it is decoded


@dataclass(frozen=True)
class Batch:
    """Input of one step on one worker.

    Args:
        images: float32 (B, 3, S, S), normalized.
        labels: int32 (B,), class indices.
        instances: int32 (B,), index of the image in the dataset: equal for copies of one image.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int32]
    instances: NDArray[np.int32]


class UnreadableFiles:
    """Unreadable files and their reasons. Thread-safe.

    Args:
        images: number of images in the dataset.
        max_fraction: fraction of them that may be unreadable.
    """

    def __init__(self, images: int, max_fraction: float) -> None:
        self._images = images
        self._max_fraction = max_fraction
        self._lock = threading.Lock()
        self.reasons: dict[str, str] = {}

    def add(self, path: str, reason: str) -> None:
        """Adds a file.

        Raises:
            MultigrainError: DATASET, if more than the allowed fraction is unreadable now.
        """
        with self._lock:
            self.reasons[path] = reason
            if len(self.reasons) > self._max_fraction * self._images:
                raise too_many_unreadable(self.reasons, self._images, self._max_fraction)


def too_many_unreadable(
    reasons: dict[str, str], images: int, max_fraction: float
) -> MultigrainError:
    """Returns a DATASET error that names some of the files."""
    named = "; ".join(
        f"{printable(path)} ({reason})" for path, reason in sorted(reasons.items())[:_SHOWN]
    )
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return MultigrainError(
        ErrorKind.DATASET,
        f"{len(reasons)} of {images} images cannot be read, more than "
        f"dataset.max_unreadable = {max_fraction:g}: {named}{more}. Repair or remove the files, "
        "or raise the limit",
    )


class ViewSource:
    """Loads the batches of one epoch on one worker by a pool of threads, in order.

    A view is a function of (seed, epoch, rank, position) alone. An unreadable image is replaced,
    with all its copies, its label and its instance id, by another image of the same epoch and
    worker that is not in the batch yet.

    Args:
        folder: the dataset.
        indices: (steps, batch_size), image indices of the epoch.
        group: number of consecutive equal indices that are decoded once; divides batch_size.
        augmenter: makes the views.
        key: seeds the views, together with the position: (seed, epoch, rank).
        unreadable: receives unreadable files.
        cache: of decoded images, shared by the epochs.
    """

    def __init__(
        self,
        folder: ImageFolder,
        indices: NDArray[np.int64],
        *,
        group: int,
        augmenter: Augmenter,
        key: tuple[int, int, int],
        unreadable: UnreadableFiles,
        cache: DecodedCache,
    ) -> None:
        self._folder = folder
        self._indices = indices
        self._group = group
        self._augmenter = augmenter
        self._key = key
        self._unreadable = unreadable
        self._cache = cache

    def batches(self, first_step: int, threads: int, prefetch: int = 2) -> Iterator[Batch]:
        """Yields the batches from ``first_step`` on, loading ``prefetch`` batches ahead."""
        steps, batch_size = self._indices.shape
        groups = batch_size // self._group
        bounds = np.linspace(0, groups, min(threads, groups) + 1).astype(int)
        pending: deque[tuple[Batch, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
            try:
                submitted = first_step
                for step in range(first_step, steps):
                    while submitted < min(steps, step + 1 + prefetch):
                        batch = self._empty(batch_size)
                        parts = [
                            pool.submit(self._fill, batch, submitted, range(a, b))
                            for a, b in pairwise(bounds.tolist())
                        ]
                        pending.append((batch, parts))
                        submitted += 1
                    batch, parts = pending.popleft()
                    for part in parts:
                        part.result()
                    yield batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _empty(self, batch_size: int) -> Batch:
        size = self._augmenter.size
        return Batch(
            np.empty((batch_size, 3, size, size), np.float32),
            np.empty(batch_size, np.int32),
            np.empty(batch_size, np.int32),
        )

    def _fill(self, batch: Batch, step: int, groups: range) -> None:
        """Writes some groups (of ``group`` samples each) of a batch."""
        for group in groups:
            index, image = self._readable(step, group * self._group)
            for slot in range(group * self._group, (group + 1) * self._group):
                position = step * self._indices.shape[1] + slot
                self._augmenter(image, self._random(0, position), out=batch.images[slot])
                batch.labels[slot] = self._folder.labels[index]
                batch.instances[slot] = index

    def _readable(self, step: int, slot: int) -> tuple[int, Image.Image]:
        """Returns index and pixels of a slot's image, or of its substitute if unreadable."""
        index = int(self._indices[step, slot])
        image = self._decode(index)
        if image is not None:
            return index, image
        batch = self._indices[step]
        # Seeded by image, not by position: copies in different groups get the same substitute.
        random = self._random(1, index)
        for attempt in range(_SUBSTITUTES):
            candidate = int(self._indices.flat[random.randrange(self._indices.size)])
            if candidate in batch and attempt < _SUBSTITUTES // 2:
                continue
            image = self._decode(candidate)
            if image is not None:
                return candidate, image
        raise MultigrainError(
            ErrorKind.DATASET,
            f"{printable(self._folder.paths[index])} cannot be read, and none of {_SUBSTITUTES} "
            "random substitutes could: repair or remove the damaged files",
        )

    def _decode(self, index: int) -> Image.Image | None:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        try:
            image = decode_image(self._folder.read(index), self._folder.limits)
        except MultigrainError as error:
            self._unreadable.add(self._folder.paths[index], error.message)
            return None
        self._cache.put(index, image)
        return image

    def _random(self, stream: int, number: int) -> Random:
        # An int of any length seeds Random, and every bit of it counts.
        seed = stream
        for part in (*self._key, number):
            seed = seed << 64 | part
        return Random(seed)
