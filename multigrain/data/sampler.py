"""The sampler of training batches: repeated augmentation over several workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError


class RepeatedSampler:
    """Shards the *images* over the workers, then repeats each one.

    Each epoch uses a new permutation of all images, the same on every worker. Worker r takes
    every ``world``-th image from the r-th on and emits each ``repeats`` times in a row; the
    stream is split into batches (MultiGrain, section 3.3, arXiv 1902.05509). All copies of an
    image are therefore on one worker, and in one batch if ``repeats`` divides ``batch_size``;
    otherwise the last copies of an image may begin the next batch, as in the paper
    (512 = 170 * 3 + 2). Sharding the *copies* instead would leave the instance loss without
    positives.

    With ``labels``, a pass has as many images of each class, up to one: those of a small class come
    several times, and some of a large class are left out until a later pass.

    An epoch is ``length_factor * images`` samples over all workers, so with ``length_factor``
    below ``repeats`` it sees ``length_factor / repeats`` of the images. If it is longer than one
    pass, further permutations follow.

    Args:
        images: number of images in the dataset.
        repeats: copies of each image.
        batch_size: samples of one step on one worker, copies included.
        rank: this worker, 0..world-1.
        world: number of workers.
        length_factor: samples of an epoch as a multiple of ``images``.
        seed: of the permutations.
        labels: (images,), class of each image; None = every image once in a pass.

    Raises:
        MultigrainError: DATASET, if there are fewer images than workers.
    """

    def __init__(
        self,
        images: int,
        *,
        repeats: int,
        batch_size: int,
        rank: int,
        world: int,
        length_factor: float,
        seed: int,
        labels: NDArray[np.int32] | None = None,
    ) -> None:
        if images < world:
            raise MultigrainError(
                ErrorKind.DATASET,
                f"the dataset has {images} images for {world} workers: use at most "
                f"{max(images, 1)} workers, or more images",
            )
        self._images = images
        self._repeats = repeats
        self._batch_size = batch_size
        self._rank = rank
        self._world = world
        self._seed = seed
        self._classes = (
            [np.flatnonzero(labels == label) for label in np.unique(labels)]
            if labels is not None
            else []
        )
        # 1e-9 absorbs the rounding of binary fractions: 0.1 * 240 / 24 is one step.
        self.steps_per_epoch = max(1, int(images * length_factor / (world * batch_size) + 1e-9))

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Returns the image indices of an epoch on this worker.

        Args:
            epoch: counted from 0.

        Returns:
            (steps_per_epoch, batch_size); depends on the arguments and the seed alone.
        """
        samples = self.steps_per_epoch * self._batch_size
        distinct = -(-samples // self._repeats)
        # Shards of equal length: the remaining images are left out of this pass.
        shard = self._images // self._world
        passes = [
            self._permutation(epoch, number)[self._rank :: self._world][:shard]
            for number in range(-(-distinct // shard))
        ]
        stream = np.repeat(np.concatenate(passes)[:distinct], self._repeats)[:samples]
        return stream.reshape(self.steps_per_epoch, self._batch_size)

    def _permutation(self, epoch: int, number: int) -> NDArray[np.int64]:
        generator = np.random.default_rng([self._seed, epoch, number])
        if not self._classes:
            return generator.permutation(self._images)
        classes = len(self._classes)
        rounds = -(-self._images // classes)
        # Each round has every class once.
        order = np.concatenate([generator.permutation(classes) for _ in range(rounds)])
        drawn = np.empty(rounds * classes, np.int64)
        for label, images in enumerate(self._classes):
            times = -(-rounds // len(images))
            each = np.concatenate([generator.permutation(images) for _ in range(times)])
            drawn[order == label] = each[:rounds]
        return drawn[: self._images]
