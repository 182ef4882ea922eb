"""Scheduled evaluation during training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multigrain.data.image_folder import scan
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.results import keep_best
from multigrain.events.records import LogRecord
from multigrain.images.parameters import Preprocessing
from multigrain.jobs.job_folder import JobFolder
from multigrain.specs.training import TrainingSpec
from multigrain.train.evaluation import ScheduledEvaluation
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter
from tests.evaluate.measure import ALL_TASKS, classify, measure
from tests.evaluate.networks import MeanColor
from tests.images.files import encode, noise

pytestmark = pytest.mark.mindspore

# At this size, and with the default crop of 0.875.
P = Preprocessing.standard(16, 0.875)


def evaluation(
    train: Path,
    held_out: Path,
    *,
    stop: bool = False,
    crop: float = 0.875,
    rank: int = 0,
    world: int = 1,
    **schedule: Any,
) -> tuple[ScheduledEvaluation, RecordingReporter]:
    reporter = RecordingReporter(stop_after=0 if stop else -1)
    folder = JobFolder(held_out.parent / "job")
    context: Any = SimpleNamespace(rank=rank, world=world, reporter=reporter, folder=folder)
    spec = TrainingSpec.model_validate(
        {
            "dataset": {"val_path": str(held_out)},
            "model": {"image_size": 16, "center_crop": crop},
            "evaluation": {"every_epochs": 1, **schedule},
        }
    )
    model: Any = MeanColor()
    return ScheduledEvaluation(context, spec, model, scan(train)), reporter


def test_held_out_images_have_the_class_indices_of_training(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=3, each=4)
    part = tmp_path / "part"
    shutil.copytree(train / "c2", part / "c2")
    record = evaluation(train, part)[0](7, 2)
    assert record is not None
    assert (record.images, record.step, record.epoch) == (4, 7, 2)
    alone = classify(MeanColor(), scan(part).relabeled(("c0", "c1", "c2")), P)
    assert alone.labels.tolist() == [2, 2, 2, 2]
    assert record.metrics == alone.metrics


def test_the_results_are_those_of_the_latest_and_of_the_best_evaluation(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=3, each=4)
    evaluate, _ = evaluation(train, train, tasks=ALL_TASKS)
    results = tmp_path / "job" / "results"

    def steps() -> list[int]:
        files = (results / "metrics.json", results / "best" / "metrics.json")
        return [json.loads(file.read_text())["step"] for file in files]

    for step in (5, 10):
        assert evaluate(step, 1) is not None
        keep_best(results)
        assert steps() == [step, step]
    assert evaluate(15, 3) is not None
    assert steps() == [15, 10]
    images = (results / "images.csv").read_text().splitlines()
    assert len(images) == 1 + 12
    assert (results / "best" / "confusion.csv").is_file()
    assert not (results / "confusion.png").exists()


def test_training_goes_on_if_the_results_cannot_be_written(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=2)
    evaluate, reporter = evaluation(train, train)
    (tmp_path / "job").write_text("in the way")
    assert evaluate(5, 1) is not None
    (record,) = [r for r in reporter.records if isinstance(r, LogRecord)]
    assert "the results cannot be written" in record.message


def test_each_worker_evaluates_its_shard(tmp_path: Path) -> None:
    train = write_dataset(tmp_path, classes=3, each=3)
    (evaluator,) = evaluation(train, train, rank=1, world=4)[0]._evaluators
    assert list(evaluator._batches.indices[0]) == [1, 5]
    assert evaluator.shard == 2


def test_held_out_images_are_cropped_by_the_models_center_crop(tmp_path: Path) -> None:
    train = write_dataset(tmp_path, classes=3, each=4)
    record = evaluation(train, train, crop=0.5)[0](1, 1)
    assert record is not None
    expected = classify(MeanColor(), scan(train), Preprocessing.standard(16, 0.5)).metrics
    assert record.metrics == expected
    assert expected["loss"] != classify(MeanColor(), scan(train), P).metrics["loss"]


def test_held_out_images_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=2)
    held_out = write_dataset(tmp_path / "val", classes=3, each=2)
    with pytest.raises(MultigrainError, match="'c2'") as caught:
        evaluation(train, held_out)
    assert caught.value.kind is ErrorKind.DATASET


def test_a_stop_request_ends_a_scheduled_evaluation(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=2)
    assert evaluation(train, train, stop=True)[0](1, 1) is None


def test_retrieval_metrics_equal_those_of_an_evaluation_job(
    tmp_path: Path,
) -> None:
    train = write_dataset(tmp_path / "train", classes=3, each=4)
    record = evaluation(train, train, tasks=ALL_TASKS)[0](5, 1)
    found = measure(MeanColor(), scan(train), P, tasks=ALL_TASKS)
    assert record is not None
    assert found is not None
    assert record.metrics == found.metrics
    assert record.metrics.keys() == {
        "top1", "top5", "loss", "copy_map", "copy_recall1", "groups_map", "groups_recall1",
    }  # fmt: skip
    assert 0 < record.metrics["copy_map"] <= 1
    assert (record.images, record.resolution) == (12, 16)


def test_groups_may_be_in_a_separate_folder(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=3)
    groups = write_dataset(tmp_path / "groups", classes=4, each=2)
    schedule = {"tasks": ("classification", "groups"), "retrieval_path": str(groups)}
    record = evaluation(train, train, **schedule)[0](5, 1)
    found = measure(MeanColor(), scan(groups), P, tasks=("groups",))
    assert record is not None
    assert found is not None
    assert record.metrics == found.metrics | classify(MeanColor(), scan(train), P).metrics
    assert record.images == 6 + 8
    # Without a task for it, the held-out folder need not exist.
    only = {"tasks": ("groups",), "retrieval_path": str(groups)}
    record = evaluation(train, tmp_path / "nothing", **only)[0](5, 1)
    assert record is not None
    assert record.metrics == found.metrics


def test_a_published_benchmark_is_evaluated_during_training(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=3)
    for number in range(8):
        picture = tmp_path / "ukb" / f"ukbench{number:05d}.png"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(encode(noise(20, 20, seed=number // 4), "PNG"))
    schedule = {"tasks": ("ukb",), "retrieval_path": str(tmp_path / "ukb"), "metric": "ukb_recall4"}
    record = evaluation(train, train, **schedule)[0](5, 1)
    assert record is not None
    assert record.metrics == {"ukb_recall4": 4.0}


def test_an_unreadable_image_is_logged_once(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", classes=2, each=3)
    (train / "c1" / "001.png").write_bytes(b"")
    held_out, reporter = evaluation(train, train)
    for step in (1, 2):
        record = held_out(step, step)
        assert record is not None
        assert (record.images, record.unreadable) == (5, 1)
    logs = [record for record in reporter.records if isinstance(record, LogRecord)]
    assert [log.fields["path"] for log in logs] == ["c1/001.png"]
