"""The sampler of repeated augmentation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from multigrain.data.sampler import RepeatedSampler
from multigrain.errors import ErrorKind, MultigrainError


def sampler(
    images: int = 240,
    repeats: int = 3,
    batch: int = 12,
    rank: int = 0,
    world: int = 1,
    factor: float = 1.0,
    seed: int = 0,
) -> RepeatedSampler:
    return RepeatedSampler(
        images, repeats=repeats, batch_size=batch, rank=rank, world=world,
        length_factor=factor, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_full_epoch_emits_every_image_exactly_repeats_times(world: int) -> None:
    total: Counter[int] = Counter()
    for rank in range(world):
        total.update(sampler(rank=rank, world=world, factor=3.0, batch=15).epoch(4).ravel())
    assert total == Counter(dict.fromkeys(range(240), 3))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_partial_epoch_emits_distinct_images_repeats_times_each(
    world: int, factor: float
) -> None:
    total: Counter[int] = Counter()
    for rank in range(world):
        total.update(sampler(rank=rank, world=world, factor=factor, batch=6).epoch(0).ravel())
    assert set(total.values()) == {3}
    assert len(total) == 240 * factor / 3


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_all_copies_of_an_image_are_in_one_batch_of_one_worker(world: int) -> None:
    owners: dict[int, int] = {}
    for rank in range(world):
        for batch in sampler(rank=rank, world=world, batch=6, factor=3.0).epoch(1):
            counts = Counter(batch.tolist())
            assert set(counts.values()) == {3}
            assert all(len(set(batch[i : i + 3])) == 1 for i in range(0, 6, 3))
            for image in counts:
                assert owners.setdefault(image, rank) == rank


def test_an_indivisible_batch_size_splits_copies_over_two_batches() -> None:
    batches = sampler(images=40, batch=8, factor=3.0).epoch(0)
    stream = batches.ravel()
    assert (stream[0::3] == stream[1::3]).all()
    assert (stream[0::3] == stream[2::3]).all()
    assert batches[0, 6] == batches[0, 7] == batches[1, 0]


@pytest.mark.parametrize(
    ("images", "batch", "world", "factor", "steps"),
    [
        (1_281_167, 30, 8, 1.0, 5338),  # the ModelZoo's
        (1_281_167, 128, 4, 2.0, 5004),  # the paper's: 5005 with the incomplete last batch
        (1437, 48, 2, 1.0, 14),
        (240, 24, 1, 0.1, 1),
        (90, 9, 1, 0.7, 7),  # 6.999999999999999 in binary fractions
        (10, 64, 1, 1.0, 1),  # at least one
    ],
)
def test_the_length_of_an_epoch(
    images: int, batch: int, world: int, factor: float, steps: int
) -> None:
    made = sampler(images=images, batch=batch, world=world, factor=factor)
    assert made.steps_per_epoch == steps
    if images < 2000:
        assert made.epoch(0).shape == (steps, batch)


def test_epochs_differ_and_are_reproducible() -> None:
    made = sampler(seed=5)
    assert not np.array_equal(made.epoch(0), made.epoch(1))
    np.testing.assert_array_equal(made.epoch(7), sampler(seed=5).epoch(7))
    assert not np.array_equal(made.epoch(0), sampler(seed=6).epoch(0))


def test_an_epoch_longer_than_the_dataset_repeats_images() -> None:
    stream = sampler(images=60, repeats=1, batch=6, factor=4.0).epoch(0).ravel()
    assert Counter(stream.tolist()) == Counter(dict.fromkeys(range(60), 4))
    passes = {tuple(turn) for turn in stream.reshape(4, 60).tolist()}
    assert len(passes) == 4  # each in a different order


def test_remaining_images_are_left_out_of_a_pass() -> None:
    seen: set[int] = set()
    for epoch in range(20):
        for rank in range(4):
            made = sampler(images=10, repeats=1, batch=2, rank=rank, world=4)
            seen.update(made.epoch(epoch).ravel().tolist())
    assert seen == set(range(10))


def test_fewer_images_than_workers_is_refused() -> None:
    with pytest.raises(MultigrainError, match="3 images for 4 workers") as caught:
        sampler(images=3, world=4)
    assert caught.value.kind is ErrorKind.DATASET


def balanced(rank: int = 0, world: int = 1, factor: float = 1.0, seed: int = 0) -> RepeatedSampler:
    """Of 7, 30 and 203 images."""
    labels = np.repeat(np.array([0, 1, 2], np.int32), [7, 30, 203])
    return RepeatedSampler(
        240, repeats=3, batch_size=12, rank=rank, world=world, length_factor=factor, seed=seed,
        labels=labels,
    )  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_balanced_pass_has_as_many_images_of_each_class(world: int) -> None:
    labels = np.repeat([0, 1, 2], [7, 30, 203])
    drawn = np.concatenate(
        [balanced(rank, world, factor=3.0).epoch(2).ravel() for rank in range(world)]
    )
    assert drawn.size == 720
    assert np.bincount(labels[drawn]).tolist() == [240, 240, 240]
    counts = np.bincount(drawn, minlength=240)
    # 80 distinct draws of each class: all images of the small classes, as often as each other.
    assert set(counts[:7]) <= {33, 36}
    assert set(counts[7:37]) <= {6, 9}
    assert set(counts[37:]) <= {0, 3}


def test_a_balanced_epoch_depends_on_seed_and_epoch_alone() -> None:
    first = balanced(seed=5).epoch(3)
    np.testing.assert_array_equal(first, balanced(seed=5).epoch(3))
    assert (first != balanced(seed=6).epoch(3)).any()
    assert (first != balanced(seed=5).epoch(4)).any()


def test_copies_of_a_balanced_draw_stay_together() -> None:
    rows = balanced().epoch(0).reshape(-1, 3)
    assert (rows == rows[:, :1]).all()
