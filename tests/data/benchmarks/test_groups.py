"""Own groups of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.data.benchmarks import list_benchmark, of_folder
from multigrain.data.image_folder import scan
from multigrain.errors import MultigrainError
from tests.data.benchmarks.files import touch

NAMES = ["a/2.jpg", "a/1.jpg", "b/1.jpg", "c/3.jpg", "c/1.jpg", "c/2.jpg"]


def test_every_image_or_the_first_of_each_group_is_a_query(tmp_path: Path) -> None:
    touch(tmp_path, NAMES)
    every = list_benchmark("groups", tmp_path)
    assert every.folder.paths == sorted(NAMES)
    assert every.queries.tolist() == [0, 1, 3, 4, 5]  # b's only image is ranked, but no query
    assert every.database.all()
    assert (every.groups, every.whole) == (2, None)
    assert list_benchmark("groups", tmp_path, "first").queries.tolist() == [0, 3]


def test_queries_do_not_depend_on_class_indices(tmp_path: Path) -> None:
    folder = scan(touch(tmp_path, NAMES)).relabeled(("x", "c", "b", "a"))
    assert of_folder(folder, "first").queries.tolist() == [0, 3]
    assert of_folder(folder).queries.tolist() == [0, 1, 3, 4, 5]


def test_groups_of_one_image_each_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MultigrainError, match="has two images"):
        list_benchmark("groups", touch(tmp_path, ["a/1.jpg", "b/1.jpg"]))
