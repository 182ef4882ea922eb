"""What a training run will do, against what the sampler does."""

from __future__ import annotations

import pytest

from multigrain.data.sampler import RepeatedSampler
from multigrain.model.cost import trunk_cost
from multigrain.specs.resolve import resolve_training
from multigrain.specs.training import TrainingSpec
from multigrain.train.plan import machine_flops, plan


def spec(**groups: object) -> TrainingSpec:
    return resolve_training(
        {"preset": "photos-small", "dataset": {"train_path": "/data"}, **groups}
    )


def test_steps_are_those_of_the_sampler() -> None:
    training = spec(schedule={"epochs": 7, "batch_size": 30})
    found = plan(training, 1000, 200)
    batches = RepeatedSampler(
        1000, repeats=3, batch_size=30, rank=0, world=1, length_factor=3.0, seed=0
    ).epoch(0)
    assert found.steps_per_epoch == len(batches) == 100
    assert (found.epochs, found.total_steps, found.step_images) == (7, 700, 30)
    assert found.evaluated_images == 7 * 200
    assert plan(spec(evaluation={"every_epochs": 0}), 1000, 200).evaluated_images == 0


def test_a_limit_of_steps_ends_the_run() -> None:
    found = plan(spec(schedule={"max_steps": 40}), 1000, 0)
    assert (found.steps_per_epoch, found.total_steps, found.epochs) == (31, 40, 2)


def test_time_follows_a_measured_rate() -> None:
    found = plan(spec(), 960, 0, measured=96.0, measured_in="train-1")
    assert found.seconds == pytest.approx(30 * 30)
    assert found.basis == "measured in job train-1"
    scored = plan(spec(), 960, 480, measured=96.0)
    # An image is scored in a third of the time that it is trained on.
    assert scored.seconds - found.seconds == pytest.approx(30 * 480 / 3 / 96)


def test_time_follows_the_cost_of_the_network() -> None:
    small, large = plan(spec(), 960, 0, flops=1e11), plan(spec(), 960, 0, flops=2e11)
    assert small.seconds == pytest.approx(2 * large.seconds)
    assert small.basis == "by the cost of the network"
    work = 2 * 3 * trunk_cost("resnet18", 64).macs * small.total_steps * 96
    assert 0.2e11 < work / small.seconds < 1e11
    unknown = plan(spec(), 960, 0)
    assert unknown.seconds == -1
    assert "no earlier run" in unknown.basis


def test_the_speed_of_a_machine_is_plausible() -> None:
    assert 1e8 < machine_flops() < 1e15
