"""The sample of images for the task "gem_p"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.data.image_folder import ImageFolder
from multigrain.evaluate.gem_p import sample_per_class

pytestmark = pytest.mark.mindspore

# Class 1 has no images, like in a folder that lacks one of the network's classes.
FOLDER = ImageFolder(
    Path("/data"),
    ("a", "b", "c"),
    [str(number) for number in range(30)],
    np.array([0] * 9 + [2] * 20 + [0], np.int32),
)


def test_each_class_has_the_requested_number_of_images() -> None:
    chosen = sample_per_class(FOLDER, 5, seed=3)
    assert len(set(chosen.tolist())) == 10
    assert np.bincount(FOLDER.labels[chosen]).tolist() == [5, 0, 5]
    assert chosen.tolist() == sorted(chosen.tolist())


def test_a_class_with_fewer_images_has_all() -> None:
    chosen = sample_per_class(FOLDER, 15, seed=3)
    assert np.bincount(FOLDER.labels[chosen]).tolist() == [10, 0, 15]


def test_the_seed_determines_the_sample() -> None:
    assert (
        sample_per_class(FOLDER, 5, seed=3).tolist() == sample_per_class(FOLDER, 5, seed=3).tolist()
    )
    assert (
        sample_per_class(FOLDER, 5, seed=3).tolist() != sample_per_class(FOLDER, 5, seed=4).tolist()
    )
