"""The preset that is chosen where a user names none."""

from __future__ import annotations

import pytest

from multigrain.specs.choice import choose_preset
from multigrain.specs.presets import merge
from multigrain.specs.resolve import resolve_training
from tests.specs.refusal import DATA, refused, with_data


@pytest.mark.parametrize(
    ("images", "target", "finetune", "preset"),
    [
        (40, "cpu", False, "photos-tiny"),
        (499, "cpu", False, "photos-tiny"),
        (500, "cpu", False, "photos-small"),
        (9_999, "cpu", False, "photos-small"),
        (10_000, "cpu", False, "photos-large"),
        (40, "gpu", False, "photos-gpu"),
        (1_000_000, "ascend", False, "photos-gpu"),
        (40, "cpu", True, "photos-finetune"),
        (40_000, "gpu", True, "photos-finetune"),
    ],
)
def test_size_device_and_weights_decide(
    images: int, target: str, finetune: bool, preset: str
) -> None:
    choice = choose_preset(images, target, finetune=finetune)
    assert choice.preset == preset
    spec = resolve_training(merge(choice.values, {**DATA, "preset": choice.preset}))
    assert spec.devices.target == target


def test_the_reason_says_what_was_counted() -> None:
    assert choose_preset(2400, "cpu", finetune=False).reason == "photos-small: 2,400 images, CPU"
    reason = choose_preset(7, "gpu", finetune=True).reason
    assert reason == "photos-finetune: 7 images, GPU, from the given weights"


def test_held_out_images_are_scored_after_every_epoch() -> None:
    def epochs(**groups: object) -> int:
        return resolve_training(with_data(**groups)).evaluation.every_epochs

    train = DATA["dataset"]
    assert epochs() == 0
    assert epochs(dataset={**train, "val_path": "/v"}) == 1
    assert epochs(dataset={**train, "val_fraction": 0.1}) == 1
    assert epochs(dataset={**train, "val_path": "/v"}, evaluation={"every_epochs": 0}) == 0
    assert epochs(dataset={**train, "val_path": "/v"}, evaluation={"every_epochs": 3}) == 3
    assert epochs(dataset={**train, "val_path": "/v"}, evaluation={"metric": "loss"}) == 1


def test_a_folder_of_held_out_images_replaces_the_presets_share() -> None:
    data = {**DATA["dataset"], "val_path": "/v"}
    assert resolve_training({"preset": "photos-small", "dataset": data}).dataset.val_fraction == 0
    both = {"preset": "photos-small", "dataset": {**data, "val_fraction": 0.1}}
    assert "give one of them" in refused(both)["spec.dataset.val_fraction"]


def test_groups_of_a_wrong_type_are_reported() -> None:
    assert refused({**DATA, "evaluation": 3}).keys() == {"spec.evaluation"}
    assert refused({"dataset": [1]}).keys() == {"spec.dataset"}
    wrong = refused({"dataset": {"train_path": "/t", "val_fraction": "a"}})
    assert wrong.keys() == {"spec.dataset.val_fraction"}
