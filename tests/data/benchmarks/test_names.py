"""Errors of benchmarks name folders and files safely."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.data.benchmarks import RETRIEVAL_TASKS, list_benchmark
from multigrain.errors import MultigrainError
from multigrain.specs.evaluation import Task

# For each error one layout that leads to it.
WRONG: list[tuple[Task, tuple[str, ...], str]] = [
    ("groups", ("a/1.jpg", "b/1.jpg"), "has two images"),
    ("holidays", ("x.jpg",), "has no images named as in INRIA Holidays"),
    ("holidays", ("100001.jpg",), "has no query"),
    ("holidays", ("a\x1b/100000.jpg", "b/100000.jpg"), "are the same image 100000"),
    ("ukb", ("x.jpg",), "has no images named as in UKB"),
    ("ukb", ("ukbench00000.jpg",), "lack images"),
    ("copydays", (), "has no folder 'original'"),
    ("copydays", ("original/200000.jpg",), "has no folder 'strong'"),
    ("copydays", ("original/x.jpg", "strong/200001.jpg"), "six digits"),
    ("copydays", ("original/200000.jpg", "strong/a\x1b/300001.jpg"), "no original"),
    ("copydays", ("original/200000.jpg", "original/\x1b/200010.jpg", "strong/x"), "six digits"),
    (
        "copydays",
        ("original/200000.jpg", "original/\x1b/200010.jpg", "strong/200001.jpg"),
        "is a second original",
    ),
]


@pytest.mark.parametrize(("task", "files", "message"), WRONG)
def test_every_error_is_printable(
    tmp_path: Path, task: Task, files: tuple[str, ...], message: str
) -> None:
    root = tmp_path / "a\x1b[2J\u202eb"
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.raises(MultigrainError, match=message) as caught:
        list_benchmark(task, root)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("task", sorted(RETRIEVAL_TASKS))
def test_a_missing_folder_is_named_safely(tmp_path: Path, task: Task) -> None:
    with pytest.raises(MultigrainError) as caught:
        list_benchmark(task, tmp_path / "a\x1bb")
    assert caught.value.message.isprintable()
