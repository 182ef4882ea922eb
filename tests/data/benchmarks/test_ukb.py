"""UKB on disk."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from multigrain.data.benchmarks import list_benchmark
from multigrain.errors import MultigrainError
from tests.data.benchmarks.files import touch


def test_four_consecutive_numbers_are_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"full/ukbench{number:05d}.jpg" for number in range(40)]
    touch(tmp_path, names)
    touch(tmp_path, ["thumbnails/ukbench00000.th.jpg"])
    walk = os.walk

    def shuffled(*arguments, **options):
        for directory, folders, files in walk(*arguments, **options):
            random.Random(3).shuffle(files)
            yield directory, folders, files

    monkeypatch.setattr(os, "walk", shuffled)
    benchmark = list_benchmark("ukb", tmp_path)
    assert benchmark.folder.paths == names
    assert benchmark.folder.labels.tolist() == [number // 4 for number in range(40)]
    assert benchmark.queries.tolist() == list(range(40))
    assert benchmark.database.all()
    assert benchmark.keeps_self
    assert (benchmark.groups, benchmark.whole, benchmark.ignored) == (10, False, 1)


def test_the_whole_benchmark_has_2550_objects(tmp_path: Path) -> None:
    touch(tmp_path, (f"ukbench{number:05d}.jpg" for number in range(10_200)))
    benchmark = list_benchmark("ukb", tmp_path)
    assert (benchmark.groups, len(benchmark.queries), benchmark.whole) == (2550, 10_200, True)


def test_an_incomplete_object_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, (f"ukbench{number:05d}.jpg" for number in range(12) if number != 6))
    with pytest.raises(
        MultigrainError, match=r"1 of the 3 objects.*first missing one is ukbench00006"
    ):
        list_benchmark("ukb", tmp_path)


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MultigrainError, match="no images named as in UKB"):
        list_benchmark("ukb", touch(tmp_path, ["ukbench0000.jpg"]))
