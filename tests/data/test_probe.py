"""The probe of a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.data.image_folder import scan
from multigrain.data.probe import probe
from multigrain.errors import ErrorKind, MultigrainError
from tests.data.datasets import write_dataset


def break_some(root: Path, share: int) -> list[str]:
    broken = []
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        if number % share == 0:
            path.write_bytes(b"")
            broken.append(path.relative_to(root).as_posix())
    return broken


def test_a_readable_dataset_passes(tmp_path: Path) -> None:
    assert probe(scan(write_dataset(tmp_path)), 0.0) == {}


def test_a_few_unreadable_files_are_reported(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, each=10)
    broken = break_some(root, 15)
    found = probe(scan(root), 0.1)
    assert sorted(found) == broken
    assert all("0 bytes" in reason for reason in found.values())


def test_a_mostly_unreadable_dataset_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, each=20)
    break_some(root, 2)
    with pytest.raises(MultigrainError, match=r"30 of 60 images.*c0/000\.png") as caught:
        probe(scan(root), 0.05)
    assert caught.value.kind is ErrorKind.DATASET
    with pytest.raises(MultigrainError, match="of 40 images"):
        probe(scan(root), 0.05, files=40)


def test_a_sample_near_the_limit_is_accepted(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, each=20)
    break_some(root, 5)
    assert probe(scan(root), 0.19, files=40)
