"""INRIA Holidays on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.data.benchmarks import list_benchmark
from multigrain.errors import ErrorKind, MultigrainError
from tests.data.benchmarks.files import touch


def full(images: int = 991) -> list[str]:
    """Names like those of the published set: 500 queries and ``images`` others."""
    others = [1 + images // 500 + (group < images % 500) for group in range(500)]
    return [f"1{group:03d}{i:02d}.jpg" for group in range(500) for i in range(others[group])]


def test_all_500_queries_are_listed(tmp_path: Path) -> None:
    benchmark = list_benchmark("holidays", touch(tmp_path, (f"jpg/{name}" for name in full())))
    assert (len(benchmark), len(benchmark.queries), benchmark.groups) == (1491, 500, 500)
    assert benchmark.whole
    assert benchmark.folder.paths[benchmark.queries[-1]] == "jpg/149900.jpg"
    positives = sum(
        int((benchmark.folder.labels == benchmark.folder.labels[query]).sum()) - 1
        for query in benchmark.queries
    )
    assert positives == 991
    assert benchmark.database.all()
    assert not benchmark.keeps_self


def test_a_part_of_the_benchmark_is_accepted_and_reported(tmp_path: Path) -> None:
    # 1001xx has no query image, 1002xx only that: both are ranked, but no queries.
    names = ["100000.jpg", "100001.jpg", "100101.jpg", "100102.JPG", "100200.png"]
    benchmark = list_benchmark("holidays", touch(tmp_path, [*names, "cover.jpg", "readme.txt"]))
    assert benchmark.folder.paths == names
    assert benchmark.queries.tolist() == [0]
    assert benchmark.folder.labels.tolist() == [0, 0, 1, 1, 2]
    assert (benchmark.groups, benchmark.whole, benchmark.ignored) == (1, False, 1)
    assert benchmark.note == "1 queries of 3 groups, 5 images: a part of the benchmark's 1491"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg"], "no images named as in INRIA Holidays"),
        (["100000.jpg", "100100.jpg"], "no query"),
        (["100001.jpg", "100002.jpg"], "no query"),
        (["100000.jpg", "copy/100000.jpg"], "100000.jpg and copy/100000.jpg .* the same image"),
    ],
)
def test_a_folder_of_other_images_is_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(MultigrainError, match=message) as caught:
        list_benchmark("holidays", touch(tmp_path, names))
    assert caught.value.kind is ErrorKind.DATASET


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MultigrainError, match="does not exist"):
        list_benchmark("holidays", tmp_path / "none")
