"""Copydays on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.data.benchmarks import list_benchmark
from multigrain.errors import MultigrainError
from tests.data.benchmarks.files import touch

NAMES = ["original/200000.jpg", "original/200100.jpg", "strong/200002.jpg", "strong/200101.jpg",
         "strong/200001.jpg", "distractors/a/0.jpg", "distractors/200100.jpg"]  # fmt: skip


def test_strong_images_query_originals_and_distractors(
    tmp_path: Path,
) -> None:
    benchmark = list_benchmark("copydays", touch(tmp_path, NAMES))
    folder = benchmark.folder
    assert folder.paths == [
        "original/200000.jpg", "original/200100.jpg",
        "strong/200001.jpg", "strong/200002.jpg", "strong/200101.jpg",
        "distractors/200100.jpg", "distractors/a/0.jpg",
    ]  # fmt: skip
    assert benchmark.queries.tolist() == [2, 3, 4]
    assert np.flatnonzero(benchmark.database).tolist() == [0, 1, 5, 6]
    # A distractor belongs to no query's group, even with such a name.
    assert folder.labels.tolist() == [0, 1, 0, 0, 1, 2, 2]
    assert benchmark.note.endswith("2 distractors")
    assert benchmark.groups == 2


def test_the_published_set_is_recognized_without_distractors(tmp_path: Path) -> None:
    touch(tmp_path, (f"originals/2{block:03d}00.jpg" for block in range(157)))
    touch(tmp_path, (f"strong/2{n % 157:03d}{1 + n // 157:02d}.jpg" for n in range(229)))
    benchmark = list_benchmark("copydays", tmp_path)
    assert (benchmark.whole, len(benchmark.queries), len(benchmark)) == (True, 229, 386)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/200000.jpg"], "no folder 'original'"),
        (["original/200000.jpg"], "no folder 'strong'"),
        (["original/x.jpg", "strong/200001.jpg"], "no images named as in Copydays"),
        (["original/200000.jpg", "strong/200101.jpg"], "the first is strong/200101.jpg"),
        (["original/200000.jpg", "original/200001.jpg", "strong/200002.jpg"], "second original"),
    ],
)
def test_a_wrong_layout_is_reported(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(MultigrainError, match=message):
        list_benchmark("copydays", touch(tmp_path, names))
