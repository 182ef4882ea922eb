"""Resolving presets and overrides, and the messages of invalid fields."""

from __future__ import annotations

import math
from typing import Any

import pytest

from multigrain.specs.resolve import resolve_training
from multigrain.specs.training import ThorSpec, TrainingSpec
from tests.specs.refusal import DATA, refused, with_data

NAN = float("nan")


def test_the_defaults_and_a_training_path_are_a_valid_run() -> None:
    expected = TrainingSpec.model_validate(DATA)
    assert resolve_training(DATA) == expected


def test_an_override_changes_only_its_own_field_of_a_preset() -> None:
    preset = resolve_training({**DATA, "preset": "resnet50-imagenet-thor-gpu"})
    changed = resolve_training(
        {
            **DATA,
            "preset": "resnet50-imagenet-thor-gpu",
            "optimizer": {"thor": {"frequency": 100}},
        }
    )
    assert changed.optimizer.thor == ThorSpec(
        frequency=100,
        block_size=128,
        damping_init=0.02345,
        damping_decay=0.5467,
        early_refreshes=(10, 100),
    )
    assert changed.model_copy(update={"optimizer": preset.optimizer}) == preset


def test_a_list_replaces_the_presets_list() -> None:
    spec = resolve_training(
        {
            **DATA,
            "preset": "resnet50-paper",
            "schedule": {"learning_rate": {"milestones": [5, 7.5]}},
        }
    )
    assert spec.schedule.learning_rate.milestones == (5.0, 7.5)
    assert spec.schedule.learning_rate.init == 0.2


def test_resolving_does_not_modify_the_overrides() -> None:
    overrides = with_data(preset="digits-demo", schedule={"learning_rate": {"milestones": [1]}})
    resolve_training(overrides)
    resolve_training(with_data(preset="digits-demo", model={"gem_p": 2.0}))
    assert overrides == with_data(
        preset="digits-demo", schedule={"learning_rate": {"milestones": [1]}}
    )
    assert resolve_training(with_data(preset="digits-demo")).model.gem_p == 3.0


@pytest.mark.parametrize(
    ("overrides", "field", "suggestion"),
    [
        ({"optimizer": {"thor": {"frequancy": 3}}}, "spec.optimizer.thor.frequancy", "frequency"),
        ({"shedule": {}}, "spec.shedule", "schedule"),
        ({"model": {"GEM_P": 3}}, "spec.model.GEM_P", "gem_p"),
        ({"epochs": 3}, "spec.epochs", "schedule.epochs"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_valid_one(
    overrides: dict[str, Any], field: str, suggestion: str
) -> None:
    message = refused({**DATA, **overrides})[field]
    assert message == f"unknown field; did you mean '{suggestion}'?"


def test_an_unknown_key_without_a_near_one_lists_the_valid_ones() -> None:
    message = refused(with_data(optimizer={"thor": {"zzz": 1}}))["spec.optimizer.thor.zzz"]
    assert "frequency, block_size, damping_init, damping_decay" in message


def test_a_key_that_is_not_a_string_is_refused() -> None:
    assert refused({**DATA, 5: 1}).keys() == {"spec[5]"}  # type: ignore[dict-item]


def test_an_unknown_preset_suggests_the_nearest_and_lists_all() -> None:
    message = refused({**DATA, "preset": "digit-demo"})["spec.preset"]
    assert "did you mean 'digits-demo'?" in message
    assert "resnet50-paper" in message


@pytest.mark.parametrize("name", ["../presets/digits-demo", "/etc/passwd", "digits-demo.yaml", "."])
def test_a_preset_name_is_never_a_path(name: str) -> None:
    assert refused({**DATA, "preset": name}).keys() == {"spec.preset"}


def test_all_violations_are_reported_at_once() -> None:
    found = refused(
        {
            "preset": "nope",
            "schedule": {"epochs": 0, "batch_size": "many"},
            "model": {"trunk": "resnet51", "gem_p": 0.5},
            "objective": None,
            "oops": 1,
        }
    )
    assert found.keys() == {
        "spec.preset",
        "spec.schedule.epochs",
        "spec.schedule.batch_size",
        "spec.model.trunk",
        "spec.model.gem_p",
        "spec.objective",
        "spec.oops",
    }


@pytest.mark.parametrize(
    ("overrides", "field", "words"),
    [
        ({"schedule": {"epochs": 0}}, "spec.schedule.epochs", ["is 0", "at least 1"]),
        ({"schedule": {"epochs": "3"}}, "spec.schedule.epochs", ["is '3'", "whole number"]),
        ({"schedule": {"epochs": 3.5}}, "spec.schedule.epochs", ["is 3.5", "whole number"]),
        ({"schedule": {"epochs": True}}, "spec.schedule.epochs", ["is true", "whole number"]),
        ({"schedule": {"epochs": None}}, "spec.schedule.epochs", ["is nothing"]),
        ({"schedule": {"epochs": {}}}, "spec.schedule.epochs", ["is a group of fields"]),
        ({"schedule": 3}, "spec.schedule", ["is 3", "group of fields"]),
        ({"seed": -1}, "spec.seed", ["is -1", "at least 0"]),
        ({"seed": 2**63}, "spec.seed", ["less than 9223372036854775808"]),
        ({"model": {"gem_p": "inf"}}, "spec.model.gem_p", ["infinity is written .inf"]),
        ({"model": {"gem_p": 0.99}}, "spec.model.gem_p", ["is 0.99", "at least 1"]),
        ({"model": {"gem_p": NAN}}, "spec.model.gem_p", ["is nan"]),
        ({"model": {"learn_gem_p": 1}}, "spec.model.learn_gem_p", ["is 1", "true or false"]),
        ({"model": {"trunk": 50}}, "spec.model.trunk", ["is 50", "'resnet50'"]),
        ({"model": {"trunk": "resnet-50"}}, "spec.model.trunk", ["did you mean 'resnet50'?"]),
        ({"initial_weights": 7}, "spec.initial_weights", ["is 7", "must be text"]),
        (
            {"schedule": {"learning_rate": {"milestones": 3}}},
            "spec.schedule.learning_rate.milestones",
            ["is 3", "must be a list"],
        ),
        (
            {"schedule": {"learning_rate": {"milestones": [1, "x"]}}},
            "spec.schedule.learning_rate.milestones[1]",
            ["is 'x'", "number"],
        ),
        ({"optimizer": {"weight_decay": math.inf}}, "spec.optimizer.weight_decay", ["finite"]),
        ({"dataset": {"train_path": "/a\0b"}}, "spec.dataset.train_path", ["NUL"]),
    ],
)
def test_a_wrong_value_is_reported_with_what_is_allowed(
    overrides: dict[str, Any], field: str, words: list[str]
) -> None:
    found = refused({**DATA, **overrides})
    assert found.keys() == {field}
    for word in words:
        assert word in found[field]


def test_a_very_long_value_is_truncated_in_the_message() -> None:
    found = refused(with_data(model={"trunk": "x" * 100_000}, seed="y" * 100_000))
    assert all(len(message) < 300 for message in found.values())


def test_an_infinite_gem_p_is_max_pooling_and_allowed() -> None:
    assert resolve_training(with_data(model={"gem_p": math.inf})).model.gem_p == math.inf


def test_the_training_path_is_required() -> None:
    assert refused({"preset": "digits-demo"}).keys() == {"spec.dataset.train_path"}
