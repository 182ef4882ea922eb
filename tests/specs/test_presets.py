"""The values of the presets."""

from __future__ import annotations

from importlib import resources

import pytest

from multigrain.optim.schedules import learning_rate
from multigrain.specs.presets import merge, preset_names, preset_values
from multigrain.specs.resolve import resolve_training
from multigrain.specs.training import TrainingSpec
from multigrain.strict_yaml import parse_mapping
from tests.specs.refusal import DATA

NAMES = [
    "defaults",
    "digits-demo",
    "photos-finetune",
    "photos-gpu",
    "photos-large",
    "photos-small",
    "photos-tiny",
    "resnet50-imagenet-momentum",
    "resnet50-imagenet-thor-ascend",
    "resnet50-imagenet-thor-gpu",
    "resnet50-paper",
]
IMAGENET_PRESETS = [name for name in NAMES if "imagenet" in name]
IMAGENET = 1_281_167


def _resolved(name: str) -> TrainingSpec:
    return resolve_training({**DATA, "preset": name})


def test_presets_are_sorted_by_name_and_have_a_description_of_one_line() -> None:
    assert preset_names() == tuple(NAMES)
    folder = resources.files("multigrain.specs") / "presets"
    for name in NAMES:
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        description = parse_mapping(text, name)["description"]
        assert 20 < len(description) <= 90
        assert "\n" not in description


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_resolves_once_the_data_is_named(name: str) -> None:
    assert _resolved(name).preset == name


@pytest.mark.parametrize("name", IMAGENET_PRESETS)
def test_the_imagenet_presets_have_the_documents_parameters(name: str) -> None:
    spec = _resolved(name)
    batch = spec.schedule.batch_size * spec.devices.count
    assert batch == 240
    assert int(IMAGENET * spec.schedule.length_factor) // batch == 5338
    assert spec.schedule.batch_size % 3 == 0
    assert spec.model.classes == 1001
    assert (spec.optimizer.momentum, spec.optimizer.weight_decay) == (0.9, 1e-4)
    assert spec.optimizer.loss_scale == 1024
    assert (spec.objective.instance_loss, spec.objective.margin) == ("triplet", 0.1)
    assert spec.objective.label_smoothing == 0.1
    assert (spec.checkpointing.every_epochs, spec.checkpointing.keep) == (5, 10)


@pytest.mark.parametrize(
    ("name", "target"), [*zip(IMAGENET_PRESETS, ("gpu", "ascend", "gpu"), strict=True)]
)
def test_the_imagenet_presets_run_on_eight_devices(name: str, target: str) -> None:
    devices = _resolved(name).devices
    assert (devices.target, devices.count) == (target, 8)


@pytest.mark.parametrize("name", IMAGENET_PRESETS[1:])
def test_the_thor_presets_have_the_documents_second_order_parameters(name: str) -> None:
    spec = _resolved(name)
    thor = spec.optimizer.thor
    assert spec.optimizer.kind == "thor"
    assert (thor.frequency, thor.damping_init, thor.damping_decay) == (834, 0.02345, 0.5467)
    # Not the document's; its residual branches start at zero.
    assert spec.model.zero_init_residual
    assert thor.early_refreshes == (10, 100)
    rates = [learning_rate(spec.schedule, epoch * 5338 - 1, 5338) for epoch in (1, 20, 39, 40)]
    unhalved = [0.05672 * (1 - epoch / 70) ** 4.9687 for epoch in (1, 20, 39, 40)]
    assert rates == pytest.approx(
        [unhalved[0], unhalved[1], unhalved[2] / 2, unhalved[3] / 4], rel=1e-12
    )


def test_the_momentum_preset_warms_up_for_two_epochs_and_decays_to_zero() -> None:
    spec = _resolved("resnet50-imagenet-momentum")
    assert spec.optimizer.kind == "momentum"
    rates = [learning_rate(spec.schedule, epoch * 5338 - 1, 5338) for epoch in (1, 2, 26, 50)]
    top = spec.schedule.learning_rate.init
    assert rates == pytest.approx([top / 2, top, top / 2, 0], abs=1e-12)


def test_the_papers_preset_is_the_papers_recipe() -> None:
    spec = _resolved("resnet50-paper")
    assert (spec.optimizer.kind, spec.schedule.epochs) == ("momentum", 120)
    assert abs(spec.schedule.batch_size * spec.devices.count - 512) <= 4
    assert spec.schedule.length_factor == 2
    assert (spec.objective.instance_loss, spec.objective.classification_weight) == ("margin", 0.5)
    assert (spec.objective.margin, spec.objective.beta_init) == (0.2, 1.2)
    assert spec.augmentation.kind == "full"
    assert spec.augmentation.repeats == 3
    rates = [learning_rate(spec.schedule, epoch * 10 - 1, 10) for epoch in (30, 60, 90, 120)]
    assert rates == pytest.approx([0.2, 0.02, 0.002, 0.0002])


def test_the_demo_does_not_flip_digits_and_runs_on_two_cpu_workers() -> None:
    spec = _resolved("digits-demo")
    assert spec.augmentation.flip == 0
    assert (spec.devices.target, spec.devices.count) == ("cpu", 2)
    assert spec.optimizer.kind == "thor"
    assert spec.augmentation.repeats == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("photos-")])
def test_the_presets_for_photographs_are_cheap_on_a_cpu_and_hold_images_out(name: str) -> None:
    spec = _resolved(name)
    if spec.devices.target == "cpu":
        assert spec.model.trunk == "resnet18"
        assert 64 <= spec.model.image_size <= 128
    assert spec.devices.count == 1
    assert spec.augmentation.repeats >= 2
    assert spec.dataset.val_fraction == 0.2
    assert spec.evaluation.every_epochs > 0
    assert spec.schedule.length_factor == spec.augmentation.repeats


def test_the_preset_without_values_is_the_defaults() -> None:
    assert _resolved("defaults") == TrainingSpec.model_validate({**DATA, "preset": "defaults"})


def test_changing_a_presets_values_does_not_change_the_preset() -> None:
    values = preset_values("resnet50-paper")
    values["schedule"]["epochs"] = 1
    values["model"].clear()
    assert preset_values("resnet50-paper")["schedule"]["epochs"] == 120
    assert preset_values("resnet50-paper")["model"]


def test_merge_joins_mappings_replaces_other_values_and_copies() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"z": 1}}
    over = {"a": {"y": [3]}, "b": {"new": 1}, "c": 5}
    merged = merge(base, over)
    assert merged == {"a": {"x": 1, "y": [3]}, "b": {"new": 1}, "c": 5}
    merged["a"]["x"] = 9
    merged["b"]["new"] = 9
    assert base["a"] == {"x": 1, "y": [1, 2]}
    assert over["b"] == {"new": 1}
