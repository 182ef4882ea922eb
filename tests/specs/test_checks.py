"""Checks across fields."""

from __future__ import annotations

import math
from typing import Any

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.resolve import resolve_evaluation, resolve_export, resolve_training
from tests.specs.refusal import DATA, WEIGHTS, refused, with_data


def evaluated(**schedule: Any) -> dict[str, Any]:
    """A training specification with an evaluation at every epoch."""
    return {
        "dataset": {"train_path": "/data/train", "val_path": "/data/val"},
        "evaluation": {"every_epochs": 1, **schedule},
    }


CONTRADICTIONS = [
    ({"evaluation": {"every_epochs": 1}}, "spec.dataset.val_path"),
    (
        {"evaluation": {"every_epochs": 1, "tasks": ["groups"], "metric": "groups_map"}},
        "spec.dataset.val_path",
    ),
    (
        {"evaluation": {"every_epochs": 1, "tasks": ["ukb"], "metric": "ukb_recall4"}},
        "spec.evaluation.retrieval_path",
    ),
    (evaluated(tasks=["classification"], retrieval_path="/r"), "spec.evaluation.retrieval_path"),
    (
        evaluated(tasks=["groups", "ukb"], retrieval_path="/r", metric="groups_map"),
        "spec.evaluation.tasks",
    ),
    (evaluated(tasks=["groups", "groups"], metric="groups_map"), "spec.evaluation.tasks"),
    (evaluated(metric="copy_map"), "spec.evaluation.metric"),
    (evaluated(tasks=["copy_detection"]), "spec.evaluation.metric"),
    (evaluated(tasks=[]), "spec.evaluation.tasks"),
    (evaluated(tasks=["gem_p"]), "spec.evaluation.tasks[0]"),
    ({"model": {"gem_p": math.inf, "learn_gem_p": True}}, "spec.model.learn_gem_p"),
    ({"schedule": {"batch_size": 32}}, "spec.schedule.batch_size"),
    ({"schedule": {"batch_size": 2}}, "spec.schedule.batch_size"),
    ({"schedule": {"batch_size": 3}}, "spec.schedule.batch_size"),
    ({"augmentation": {"repeats": 1}}, "spec.augmentation.repeats"),
    ({"objective": {"instance_loss": "none"}}, "spec.objective.classification_weight"),
    ({"augmentation": {"crop_scale_min": 0.9, "crop_scale_max": 0.5}}, None),
    ({"augmentation": {"crop_ratio_min": 2.0}}, "spec.augmentation.crop_ratio_min"),
    ({"schedule": {"learning_rate": {"end_epoch": 44.5}}}, "spec.schedule.learning_rate.end_epoch"),
    (
        {"schedule": {"learning_rate": {"kind": "cosine", "end_epoch": 3}}},
        "spec.schedule.learning_rate.end_epoch",
    ),
    (
        {"schedule": {"learning_rate": {"kind": "linear", "warmup_epochs": 45}}},
        "spec.schedule.learning_rate.warmup_epochs",
    ),
    (
        {"schedule": {"learning_rate": {"milestones": [4, 4]}}},
        "spec.schedule.learning_rate.milestones",
    ),
    (
        {"schedule": {"learning_rate": {"milestones": [0, 4]}}},
        "spec.schedule.learning_rate.milestones",
    ),
    ({"optimizer": {"thor": {"w2": 0.02}}}, "spec.optimizer.thor.w2"),
    ({"optimizer": {"thor": {"damping_min": 0.1}}}, "spec.optimizer.thor.damping_min"),
    (
        {"optimizer": {"thor": {"frequency": 9, "frequency_max": 8}}},
        "spec.optimizer.thor.frequency_max",
    ),
    ({"precision": "fp16"}, "spec.precision"),
    (
        {"optimizer": {"loss_scale_min": 64, "loss_scale_max": 32}},
        "spec.optimizer.loss_scale_min",
    ),
    (
        {"optimizer": {"loss_scaling": "dynamic", "loss_scale": 0.5}},
        "spec.optimizer.loss_scale",
    ),
    ({"devices": {"launcher": "rank-table", "rank_table": "/r", "target": "gpu"}}, None),
    ({"devices": {"launcher": "rank-table", "target": "ascend"}}, "spec.devices.rank_table"),
    ({"devices": {"rank_table": "/r"}}, "spec.devices.rank_table"),
]


@pytest.mark.parametrize(("overrides", "field"), CONTRADICTIONS)
def test_contradicting_fields_are_refused(overrides: dict[str, Any], field: str | None) -> None:
    found = refused({**DATA, **overrides})
    if field is not None:
        assert found.keys() == {field}


CONSISTENT = [
    evaluated(tasks=["classification", "copy_detection", "groups"], metric="copy_recall1"),
    evaluated(tasks=["classification", "holidays"], retrieval_path="/r", metric="holidays_map"),
    {
        "evaluation": {
            "every_epochs": 1,
            "tasks": ["groups"],
            "retrieval_path": "/r",
            "metric": "groups_recall1",
        }
    },
    {"evaluation": {"metric": "copy_map"}},
    {"augmentation": {"repeats": 1}, "objective": {"classification_weight": 1.0}},
    {"objective": {"instance_loss": "none", "classification_weight": 1.0}},
    {"objective": {"classification_weight": 1}, "schedule": {"batch_size": 3}},
    {"schedule": {"batch_size": 6}},
    {"schedule": {"learning_rate": {"end_epoch": 45}}},
    {"schedule": {"learning_rate": {"end_epoch": 10, "decay": 0}}},
    {"schedule": {"learning_rate": {"kind": "linear", "end": 0.001, "end_epoch": 10}}},
    {"precision": "fp16", "devices": {"target": "gpu"}},
    {"devices": {"launcher": "rank-table", "rank_table": "/r", "target": "ascend"}},
    {"devices": {"rank_table": "/r", "target": "ascend"}},
]


@pytest.mark.parametrize("overrides", CONSISTENT)
def test_consistent_values_next_to_the_limits_are_accepted(overrides: dict[str, Any]) -> None:
    resolve_training({**DATA, **overrides})


def test_a_refused_batch_size_suggests_valid_ones() -> None:
    message = refused(with_data(schedule={"batch_size": 128}))["spec.schedule.batch_size"]
    assert "126 or 129" in message


@pytest.mark.parametrize(
    "weights",
    [{}, {"job_id": "a", "model": "b"}, {"job_id": "", "model": ""}, {"checkpoint": "best"}],
)
def test_exactly_one_weights_source_is_required(weights: dict[str, str]) -> None:
    found = refused({"weights": weights, "dataset_path": "/d"}, resolve_evaluation)
    assert found.keys() == {"spec.weights"}
    assert "exactly one" in found["spec.weights"]


@pytest.mark.parametrize("which", ["lats", "", "-3", "1.5", "best ", "9" * 30, "١٢"])
def test_a_checkpoint_is_last_best_or_a_step(which: str) -> None:
    overrides = {"weights": {"job_id": "j", "checkpoint": which}, "dataset_path": "/d"}
    assert refused(overrides, resolve_evaluation).keys() == {"spec.weights.checkpoint"}


def test_all_violations_of_an_evaluation_are_reported() -> None:
    overrides = {
        "weights": {"model": "m", "checkpoint": "best"},
        "tasks": ["classification", "classification"],
        "resolution": 3,
        "gem_p": 0.5,
        "trunk": "resnet20",
    }
    assert refused(overrides, resolve_evaluation).keys() == {
        "spec.weights.checkpoint",
        "spec.dataset_path",
        "spec.tasks",
        "spec.resolution",
        "spec.gem_p",
        "spec.trunk",
    }


def test_empty_tasks_and_formats_mean_the_defaults() -> None:
    evaluation = resolve_evaluation({**WEIGHTS, "dataset_path": "/d", "tasks": []})
    assert evaluation.tasks == ("classification", "copy_detection")
    export = resolve_export({**WEIGHTS, "model_name": "m", "formats": []})
    assert export.formats == ("mindir", "onnx")


def test_a_benchmark_with_its_own_layout_cannot_be_combined() -> None:
    overrides = {**WEIGHTS, "dataset_path": "/d", "tasks": ["classification", "holidays"]}
    assert "without 'classification'" in refused(overrides, resolve_evaluation)["spec.tasks"]
    for tasks in (["holidays"], ["groups", "copy_detection", "classification"]):
        assert resolve_evaluation({**overrides, "tasks": tasks}).tasks == tuple(tasks)


def test_a_misspelled_task_suggests_the_nearest() -> None:
    overrides = {**WEIGHTS, "dataset_path": "/d", "tasks": ["clasification"]}
    found = refused(overrides, resolve_evaluation)
    assert "did you mean 'classification'?" in found["spec.tasks[0]"]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "..", "a\n", "é", "a" * 65])
def test_a_model_name_is_required_and_restricted(name: str) -> None:
    assert refused({**WEIGHTS, "model_name": name}, resolve_export).keys() == {"spec.model_name"}


def test_an_export_refuses_a_model_and_several_workers() -> None:
    overrides = {"weights": {"model": "m"}, "model_name": "m", "devices": {"count": 2}}
    found = refused(overrides, resolve_export)
    assert found.keys() == {"spec.weights.model", "spec.devices.count"}
    without = refused({"model_name": "m"}, resolve_export)["spec.weights"]
    assert without == "exactly one of job_id and checkpoint_path is needed; none is set"


def test_air_is_supported_on_ascend_only() -> None:
    overrides = {**WEIGHTS, "model_name": "m", "formats": ["air"]}
    with pytest.raises(MultigrainError, match="Ascend only") as caught:
        resolve_export(overrides)
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert resolve_export({**overrides, "devices": {"target": "ascend"}}).formats == ("air",)
