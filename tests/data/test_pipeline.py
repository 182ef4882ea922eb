"""The training pipeline."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from multigrain.data import pipeline
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.data.pipeline import TrainingData
from multigrain.data.source import Batch, UnreadableFiles
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.training import TrainingSpec
from tests.data.datasets import write_dataset

pytestmark = pytest.mark.mindspore


def spec(**changes: object) -> TrainingSpec:
    body: dict[str, object] = {
        "model": {"image_size": 16},
        "schedule": {"batch_size": 6, "length_factor": 3.0},
        "seed": 11,
    }
    return TrainingSpec.model_validate(body | changes)


def data(
    root: Path, rank: int = 0, world: int = 1, threads: int = 1, **changes: object
) -> TrainingData:
    return TrainingData(scan(root), spec(**changes), rank=rank, world=world, threads=threads)


def equal(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a.images, b.images)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.instances, b.instances)
        for a, b in zip(left, right, strict=True)
    )


def copies(batches: list[Batch]) -> list[Batch]:
    return [Batch(b.images.copy(), b.labels.copy(), b.instances.copy()) for b in batches]


def test_a_batch_has_image_copies_with_labels_and_instance_ids(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    folder, made = scan(root), data(root)
    batches = list(made.epoch(0))
    assert len(batches) == made.steps_per_epoch == 6
    for batch in batches:
        assert batch.images.shape == (6, 3, 16, 16)
        assert batch.images.dtype == np.float32
        assert batch.labels.dtype == batch.instances.dtype == np.int32
        assert sorted(np.unique(batch.instances, return_counts=True)[1]) == [3, 3]
        np.testing.assert_array_equal(batch.labels, folder.labels[batch.instances])
        # Copies are different views.
        assert not np.array_equal(batch.images[0], batch.images[1])
    assert sorted(np.concatenate([b.instances for b in batches])) == sorted([*range(12)] * 3)
    assert made.unreadable == {}


@pytest.mark.parametrize("kind", ["full", "autoaugment", "plain"])
def test_batches_do_not_depend_on_the_number_of_threads(tmp_path: Path, kind: str) -> None:
    root = write_dataset(tmp_path, each=8)
    augmentation = {"kind": kind, "rotation": 5.0}
    one = copies(list(data(root, threads=1, augmentation=augmentation).epoch(2)))
    many = copies(list(data(root, threads=2, augmentation=augmentation).epoch(2)))
    assert equal(one, many)


def test_a_resumed_epoch_continues_with_the_same_batches(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    whole = copies(list(data(root).epoch(3)))
    assert equal(whole[4:], copies(list(data(root).epoch(3, first_step=4))))
    assert list(data(root).epoch(3, first_step=6)) == []


def test_resuming_late_reads_only_the_remaining_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = data(write_dataset(tmp_path), schedule={"batch_size": 6, "length_factor": 50.0})
    read: list[int] = []
    original = ImageFolder.read
    monkeypatch.setattr(
        ImageFolder, "read", lambda self, index: read.append(index) or original(self, index)
    )
    assert len(list(made.epoch(0, first_step=made.steps_per_epoch - 1))) == 1
    assert len(read) == 2


def test_batches_differ_by_epoch_rank_and_seed(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    first = copies(list(data(root).epoch(0)))
    assert not equal(first, list(data(root).epoch(1)))
    assert not equal(first, list(data(root, seed=12).epoch(0)))
    halves = [list(data(root, rank=rank, world=2).epoch(0)) for rank in (0, 1)]
    owned = [{int(i) for batch in half for i in batch.instances} for half in halves]
    assert owned[0].isdisjoint(owned[1])
    assert owned[0] | owned[1] == set(range(12))


def test_views_differ_by_epoch_rank_and_seed(
    tmp_path: Path,
) -> None:
    """Two files of the same image: only the views differ."""
    root = write_dataset(tmp_path, classes=1, each=1)
    shutil.copy(root / "c0" / "000.png", root / "c0" / "001.png")
    views = [
        next(iter(data(root, rank=rank, world=2, seed=seed).epoch(epoch))).images.copy()
        for rank, seed, epoch in [(0, 11, 0), (0, 11, 1), (1, 11, 0), (0, 12, 0)]
    ]
    for one, other in itertools.combinations(views, 2):
        assert not np.array_equal(one, other)


def test_a_batch_size_that_repeats_do_not_divide_works(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    schedule = {"batch_size": 7, "length_factor": 3.0}
    batches = copies(list(data(root, schedule=schedule).epoch(0)))
    assert [len(batch.labels) for batch in batches] == [7] * 5
    assert equal(batches, list(data(root, threads=2, schedule=schedule).epoch(0)))


def break_files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("batch_size", [6, 7])
def test_an_unreadable_image_is_replaced_with_all_its_copies_and_reported(
    tmp_path: Path, batch_size: int
) -> None:
    root = write_dataset(tmp_path)
    break_files(root, "c1/002.png")
    folder = scan(root)
    bad = folder.paths.index("c1/002.png")
    changes = {
        "dataset": {"max_unreadable": 0.2},
        "schedule": {"batch_size": batch_size, "length_factor": 3.0},
    }
    made = data(root, **changes)
    batches = copies(list(made.epoch(0)))
    assert list(made.unreadable) == ["c1/002.png"]
    assert "truncated" in made.unreadable["c1/002.png"]
    for batch in batches:
        assert bad not in batch.instances
        np.testing.assert_array_equal(batch.labels, folder.labels[batch.instances])
    for batch, drawn in zip(batches, made._sampler.epoch(0), strict=True):
        # All copies in a batch get the same image, also in different groups.
        assert len(set(batch.instances[drawn == bad])) <= 1
    if batch_size == 6:
        for batch in batches:
            assert sorted(np.unique(batch.instances, return_counts=True)[1]) == [3, 3]
    assert equal(batches, list(data(root, threads=2, **changes).epoch(0)))


def test_a_substitute_is_not_in_the_batch_yet(tmp_path: Path) -> None:
    """One of three images is damaged, and a batch has two: the third is the substitute."""
    root = write_dataset(tmp_path, classes=1, each=3)
    break_files(root, "c0/001.png")
    for seed in range(6):
        schedule = {"batch_size": 6, "length_factor": 6.0}
        made = data(root, seed=seed, dataset={"max_unreadable": 0.5}, schedule=schedule)
        for batch, drawn in zip(made.epoch(0), made._sampler.epoch(0), strict=True):
            if len(set(drawn)) == 2:  # between two passes an image may repeat
                assert set(batch.instances.tolist()) == {0, 2}


def test_too_many_unreadable_images_end_the_epoch_and_are_listed(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    break_files(root, "c0/000.png", "c1/001.png", "c2/002.png")
    made = data(root, dataset={"max_unreadable": 0.2})
    with pytest.raises(MultigrainError, match=r"3 of 12 images cannot be read.*c1/001\.png") as e:
        list(made.epoch(0))
    assert e.value.kind is ErrorKind.DATASET


def test_the_allowed_number_of_unreadable_images_is_tolerated() -> None:
    unreadable = UnreadableFiles(images=10, max_fraction=0.2)
    unreadable.add("a", "damaged")
    unreadable.add("b", "damaged")
    unreadable.add("b", "damaged")  # the same file again
    with pytest.raises(MultigrainError, match="3 of 10 images"):
        unreadable.add("c", "damaged")


def test_an_abandoned_epoch_leaves_no_threads(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)

    def loaders() -> int:
        return sum(thread.name.startswith("loader") for thread in threading.enumerate())

    for epoch in range(5):
        batches = data(root, threads=2, schedule={"batch_size": 6, "length_factor": 100.0})
        iterator = batches.epoch(epoch)
        next(iterator)
        iterator.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while loaders() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert loaders() == 0


@pytest.mark.parametrize(
    ("cpus", "requested", "workers", "threads"),
    [(64, 0, 1, 64), (1, 0, 1, 1), (4, 0, 2, 2), (2, 0, 8, 1), (2, 16, 1, 2), (64, 16, 1, 16)],
)
def test_a_worker_has_at_most_one_loader_thread_per_cpu_that_it_may_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    requested: int,
    workers: int,
    threads: int,
) -> None:
    monkeypatch.setattr(pipeline, "available_cpus", lambda: cpus)
    monkeypatch.setattr(pipeline, "_file_size", lambda *_: 1 << 20)
    folder = scan(write_dataset(tmp_path, classes=2, each=2))
    assert pipeline.loader_threads(requested, workers, folder) == threads
