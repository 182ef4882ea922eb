"""Decoded pictures kept in memory, where the whole dataset fits."""

from __future__ import annotations

import io
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
from multigrain.images.decode import FORMATS, ImageLimits, decode_image

BUDGET = 512 * 2**20  # bytes, over all workers
_SAMPLES = 64


class DecodedCache:
    """Keeps pictures up to a number of bytes; what is in stays in. Threads may share it.

    For small pictures decoding is a third of the loader's work (measured: 3,800 to 7,400 views
    of 48 px a second on one thread).

    Args:
        budget: largest sum of the sizes in memory, in bytes; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._images: dict[int, Image.Image] = {}

    def get(self, index: int) -> Image.Image | None:
        """The picture, or None if it is not kept."""
        return self._images.get(index)

    def put(self, index: int, image: Image.Image) -> None:
        """Keeps a picture of mode RGB, if there is room. Nobody may change it afterwards."""
        size = 3 * image.width * image.height
        # Two threads may both find room for the last picture: the budget is no hard limit.
        if size <= self._left and index not in self._images:
            self._left -= size
            self._images[index] = image


def create_cache(folder: ImageFolder, world: int, budget: int = BUDGET) -> DecodedCache:
    """A cache if a worker's share of the budget holds the whole dataset, else one that is off.

    Every worker comes to see every image, so each needs room for all. The size is estimated
    from the headers of some files; keeping a part only would win little and cost the memory.
    """
    step = max(1, len(folder) // _SAMPLES)
    sizes = [_pixels(folder, index) * 3 for index in range(0, len(folder), step)]
    estimate = sum(sizes) / len(sizes) * len(folder)
    share = budget // world
    return DecodedCache(share if estimate <= share else 0)


def _pixels(folder: ImageFolder, index: int) -> int:
    try:
        with Image.open(io.BytesIO(folder.read(index)), formats=FORMATS) as image:
            return image.width * image.height
    except (MultigrainError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0  # an unreadable file is reported when its turn comes


# MERGED: Random access to augmented views: what the pipeline's threads call.


@dataclass(frozen=True)
class Batch:
    """Input of one step on one worker.

    Args:
        images: float32 (B, 3, S, S), normalized.
        labels: int32 (B,) class numbers.
        instances: int32 (B,) index of the image in the dataset: equal for copies of one image.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int32]
    instances: NDArray[np.int32]


_NAMED = 5
_SUBSTITUTES = 32  # draws for a picture that stands in for an unreadable one


class UnreadableFiles:
    """Files that could not be used and why; shared by threads."""

    def __init__(self, images: int, max_share: float) -> None:
        self._images = images
        self._max_share = max_share
        self._lock = threading.Lock()
        self.reasons: dict[str, str] = {}

    def add(self, path: str, reason: str) -> None:
        """Notes a file.

        Raises:
            MultigrainError: DATASET if these are now more than the allowed share of the images.
        """
        with self._lock:
            self.reasons[path] = reason
            if len(self.reasons) > self._max_share * self._images:
                raise too_many_unreadable(self.reasons, self._images, self._max_share)


def too_many_unreadable(reasons: dict[str, str], images: int, max_share: float) -> MultigrainError:
    """DATASET, naming some of the files."""
    named = "; ".join(f"{path} ({reason})" for path, reason in sorted(reasons.items())[:_NAMED])
    more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return MultigrainError(
        ErrorKind.DATASET,
        f"{len(reasons)} of {images} images cannot be read, more than "
        f"dataset.max_unreadable = {max_share:g}: {named}{more}. Repair or remove the files, "
        "or raise the limit",
    )


class ViewSource:
    """One epoch of a worker, made by a pool of threads, in order.

    A view is a function of (seed, epoch, rank, position) alone. An image that cannot be read is
    replaced, with all of its copies, its label and its instance id, by another one of the same
    epoch and worker that is not in the batch already.

    Args:
        folder: the dataset.
        indices: (steps, batch_size) image indices of the epoch.
        group: consecutive equal indices that are decoded once; divides batch_size.
        augmenter: makes a view.
        key: what seeds the views, besides the position: (seed, epoch, rank).
        unreadable: where unusable files are noted.
        cache: of decoded images, kept over the epochs.
        limits: what one file may cost.
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
        limits: ImageLimits,
    ) -> None:
        self._folder = folder
        self._indices = indices
        self._group = group
        self._augmenter = augmenter
        self._key = key
        self._unreadable = unreadable
        self._cache = cache
        self._limits = limits

    def batches(self, first_step: int, threads: int, ahead: int = 2) -> Iterator[Batch]:
        """The batches from ``first_step`` on; at most ``ahead`` more are in the making."""
        steps, batch_size = self._indices.shape
        rows = batch_size // self._group
        cuts = np.linspace(0, rows, min(threads, rows) + 1).astype(int)
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
            try:
                begun = first_step
                for step in range(first_step, steps):
                    while begun < min(steps, step + 1 + ahead):
                        batch = self._empty(batch_size)
                        parts = [
                            pool.submit(self._fill, batch, begun, range(a, b))
                            for a, b in pairwise(cuts.tolist())
                        ]
                        waiting.append((batch, parts))
                        begun += 1
                    batch, parts = waiting.popleft()
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

    def _fill(self, batch: Batch, step: int, rows: range) -> None:
        """Writes some rows (of ``group`` samples each) of a batch."""
        for row in rows:
            index, image = self._readable(step, row * self._group)
            for slot in range(row * self._group, (row + 1) * self._group):
                position = step * self._indices.shape[1] + slot
                self._augmenter(image, self._random(0, position), out=batch.images[slot])
                batch.labels[slot] = self._folder.labels[index]
                batch.instances[slot] = index

    def _readable(self, step: int, slot: int) -> tuple[int, Image.Image]:
        index = int(self._indices[step, slot])
        image = self._decode(index)
        if image is not None:
            return index, image
        batch = self._indices[step]
        # By image, not by position: copies in different rows get the same substitute.
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
            f"{self._folder.paths[index]} cannot be read, and no readable image was found to "
            f"replace it in {_SUBSTITUTES} draws: repair or remove the damaged files",
        )

    def _decode(self, index: int) -> Image.Image | None:
        kept = self._cache.get(index)
        if kept is not None:
            return kept
        try:
            image = decode_image(self._folder.read(index), self._limits)
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
