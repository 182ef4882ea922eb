"""The training pipeline: prefetched batches of augmented images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mindspore.dataset as ds
from numpy.typing import NDArray

from multigrain.data.augment import Augmenter
from multigrain.data.image_folder import ImageFolder
from multigrain.data.sampler import RepeatedSampler
from multigrain.data.source import Batch, UnreadableFiles, ViewSource, create_cache
from multigrain.errors import MultigrainError
from multigrain.machine import available_cpus
from multigrain.specs.training import TrainingSpec

_SMALL_FILE = 16 * 1024  # bytes
_SIZE_SAMPLES = 64
_COLUMNS = ["images", "labels", "instances"]


class TrainingData:
    """The training set as one worker sees it.

    The batches of an epoch depend on the seed, the epoch, the rank and the world size alone, not
    on the number of threads or the step at which the epoch is resumed.

    Images are loaded by threads, not processes: Pillow releases the GIL while it decodes and
    resizes, and a fork after MindSpore has started threads can hang.

    Args:
        folder: the images.
        spec: the training run.
        rank: this worker.
        world: number of workers.
        threads: loader threads; 0 = chosen from the cores and the size of the files.

    Raises:
        MultigrainError: DATASET, if there are fewer images than workers.
    """

    def __init__(
        self, folder: ImageFolder, spec: TrainingSpec, *, rank: int, world: int, threads: int
    ) -> None:
        self._folder = folder
        self._seed = spec.seed
        self._rank = rank
        self._threads = loader_threads(threads, world, folder)
        self._sampler = RepeatedSampler(
            len(folder),
            repeats=spec.augmentation.repeats,
            batch_size=spec.schedule.batch_size,
            rank=rank,
            world=world,
            length_factor=spec.schedule.length_factor,
            seed=spec.seed,
            labels=folder.labels if spec.dataset.class_balanced else None,
        )
        # The copies of an image are one group of the pipeline, so that it is decoded once.
        whole = spec.schedule.batch_size % spec.augmentation.repeats == 0
        self._group = spec.augmentation.repeats if whole else 1
        self._augmenter = Augmenter(spec.augmentation, spec.model.image_size)
        self._cache = create_cache(folder, world)
        self._unreadable = UnreadableFiles(len(folder), spec.dataset.max_unreadable)

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler.steps_per_epoch

    @property
    def unreadable(self) -> dict[str, str]:
        """Files skipped so far: path within the dataset -> reason."""
        return dict(self._unreadable.reasons)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch.

        Args:
            epoch: counted from 0.
            first_step: step to begin with, to resume an epoch; earlier ones are not loaded.

        Raises:
            MultigrainError: DATASET, if too many files are unreadable.
        """
        source = ViewSource(
            self._folder,
            self._sampler.epoch(epoch),
            group=self._group,
            augmenter=self._augmenter,
            key=(self._seed, epoch, self._rank),
            unreadable=self._unreadable,
            cache=self._cache,
        )
        if first_step >= self.steps_per_epoch:
            return
        failures: list[MultigrainError] = []

        def batches() -> Iterator[tuple[NDArray[Any], ...]]:
            try:
                for batch in source.batches(first_step, self._threads):
                    yield batch.images, batch.labels, batch.instances
            except MultigrainError as error:
                # mindspore.dataset passes on only the text of an exception.
                failures.append(error)
                raise

        # One reader: MindSpore's parallel workers pass single samples through Python queues,
        # which is 3 to 10 times slower for small images than the source's thread pool.
        dataset = ds.GeneratorDataset(
            batches, _COLUMNS, num_parallel_workers=1, python_multiprocessing=False
        )
        iterator = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)
        try:
            for images, labels, instances in iterator:
                yield Batch(images, labels, instances)
        except RuntimeError:
            if failures:
                raise failures[0] from None
            raise
        finally:
            iterator.stop()


def loader_threads(requested: int, workers: int, folder: ImageFolder) -> int:
    """Returns the number of loader threads of one worker: as requested, but at most one per core.

    If 0 is requested: the worker's share of the cores, but a single thread for small files. For
    images of up to about 128 px, threads lose more time to the GIL than they gain.
    """
    cores = available_cpus()
    if requested:
        return min(requested, cores)
    step = max(1, len(folder) // _SIZE_SAMPLES)
    sizes = [_file_size(folder, index) for index in range(0, len(folder), step)]
    small = sum(sizes) < _SMALL_FILE * len(sizes)
    return 1 if small else max(1, cores // workers)


def _file_size(folder: ImageFolder, index: int) -> int:
    try:
        return (folder.root / folder.paths[index]).stat().st_size
    except OSError:  # an unreadable file is reported when it is decoded
        return 0
