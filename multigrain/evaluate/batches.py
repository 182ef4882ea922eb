"""Which images go through the network together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from multigrain.data.folder import ImageFolder
from multigrain.errors import MultigrainError
from multigrain.evaluate.gather import Gather
from multigrain.images.decode import image_size
from multigrain.images.rect import rect_size


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
    gather: Gather,
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
        gather: puts the sizes that the workers have read together.
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
    sizes = gather.sum(sizes)
    order = np.lexsort((np.arange(len(folder)), sizes[:, 1], sizes[:, 0]))
    batches: list[list[int]] = []
    for index in order.tolist():
        last = batches[-1] if batches else []
        if not last or len(last) == batch_size or (sizes[last[0]] != sizes[index]).any():
            batches.append([index])
        else:
            last.append(index)
    return Batches(batches[rank::world])
