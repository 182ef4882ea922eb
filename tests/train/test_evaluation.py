"""Evaluation while training."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multigrain.data.folder import scan
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.spec.training import TrainingSpec
from multigrain.train.job import _Evaluation
from tests.data.datasets import write_dataset
from tests.evaluate.networks import MeanColour


def evaluation(train: Path, held_out: Path, *, stop: bool = False) -> _Evaluation:
    reporter = SimpleNamespace(alive=lambda: None, stop_requested=stop)
    context: Any = SimpleNamespace(rank=0, world=1, reporter=reporter)
    spec = TrainingSpec.model_validate(
        {"dataset": {"val_path": str(held_out)}, "model": {"image_size": 16}}
    )
    return _Evaluation(context, spec, MeanColour(), scan(train))


def test_held_out_images_of_some_classes_are_numbered_as_in_training(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=3, each=4)
    part = tmp_path / "part"
    shutil.copytree(train / "c2", part / "c2")
    whole = evaluation(train, train)
    assert evaluation(train, part)._folder.labels.tolist() == [2, 2, 2, 2]
    record = evaluation(train, part)(7, 2)
    assert record is not None
    assert (record.images, record.step, record.epoch) == (4, 7, 2)
    assert whole._folder.classes == evaluation(train, part)._folder.classes


def test_held_out_images_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=2)
    held_out = write_dataset(tmp_path / "val", classes=3, each=2)
    with pytest.raises(MultigrainError, match="'c2'") as caught:
        evaluation(train, held_out)
    assert caught.value.kind is ErrorKind.DATASET


def test_an_evaluation_while_training_ends_when_asked_to(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=2)
    assert evaluation(train, train, stop=True)(1, 1) is None
