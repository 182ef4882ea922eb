"""Learning rate and damping schedules against published values."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from multigrain.optim.schedules import damping, learning_rate
from multigrain.specs.training import LearningRateSpec, ScheduleSpec, ThorSpec

STEPS = 5338


def _schedule(epochs: int = 40, **rate: Any) -> ScheduleSpec:
    return ScheduleSpec(epochs=epochs, learning_rate=LearningRateSpec.model_validate(rate))


def _at(schedule: ScheduleSpec, epoch: float, steps: int = STEPS) -> float:
    """Rate of the step whose epoch is ``epoch``."""
    return learning_rate(schedule, round(epoch * steps) - 1, steps)


GPU: dict[str, Any] = {"kind": "thor", "init": 0.05672, "decay": 4.9687, "end_epoch": 50}


@pytest.mark.parametrize(
    ("epoch", "published"),
    [(1, "0.0513"), (10, "0.0187"), (20, "0.00448"), (30, "0.000598"), (38, "0.000047")],
)
def test_the_thor_rate_has_the_published_values_of_the_gpu_configuration(
    epoch: int, published: str
) -> None:
    digits = len(published.split(".")[1])
    assert round(_at(_schedule(**GPU), epoch), digits) == float(published)


@pytest.mark.parametrize(
    ("epoch", "published"),
    [(1, "0.0528"), (10, "0.0264"), (20, "0.0107"), (30, "0.0035"), (38, "0.00116")],
)
def test_the_thor_rate_has_the_documents_values_with_end_epoch_70(
    epoch: int, published: str
) -> None:
    digits = len(published.split(".")[1])
    schedule = _schedule(epochs=50, **{**GPU, "end_epoch": 70})
    assert round(_at(schedule, epoch), digits) == float(published)


@pytest.mark.parametrize(
    ("epoch", "published"), [(1, 0.0221), (10, 0.0128), (20, 0.0070), (30, 0.0038), (40, 0.0021)]
)
def test_the_damping_has_the_published_values(epoch: int, published: float) -> None:
    spec = ThorSpec(damping_init=0.02345, damping_decay=0.5467)
    assert round(damping(spec, epoch * STEPS - 1, STEPS), 4) == published


def test_the_damping_has_a_floor() -> None:
    spec = ThorSpec(damping_init=0.1, damping_decay=0.1, damping_min=0.02)
    assert damping(spec, 4, 1) == pytest.approx(0.1 * 10**-0.5)
    assert [damping(spec, step, 1) for step in (9, 50, 10**6)] == [0.02] * 3


def test_the_thor_rate_is_halved_from_each_milestone_on() -> None:
    plain = _schedule(epochs=50, **GPU)
    halved = _schedule(epochs=50, **GPU, milestones=(39, 40))
    step = 39 * STEPS - 1  # its epoch is 39 exactly
    before, at, after = (
        learning_rate(halved, i, STEPS) / learning_rate(plain, i, STEPS)
        for i in (step - 1, step, step + STEPS)
    )
    assert (before, at, after) == pytest.approx((1.0, 0.5, 0.25))


def test_the_thor_rate_ignores_gamma_and_warm_up() -> None:
    plain = _schedule(**GPU, milestones=(2,))
    other = _schedule(**GPU, milestones=(2,), gamma=0.9, warmup_epochs=3)
    assert all(learning_rate(plain, i, 3) == learning_rate(other, i, 3) for i in range(120))


def test_past_its_end_the_thor_rate_is_zero() -> None:
    schedule = _schedule(epochs=60, **GPU)
    rates = [_at(schedule, epoch) for epoch in (49.9, 50, 50.1, 60)]
    assert rates[0] > 0
    assert rates[1:] == [0.0, 0.0, 0.0]


def test_the_thor_rate_with_decay_zero_is_constant() -> None:
    schedule = _schedule(epochs=2, kind="thor", init=0.1, decay=0)
    assert {learning_rate(schedule, i, 5) for i in range(20)} == {0.1}


@pytest.mark.parametrize("kind", ["thor", "linear", "cosine"])
def test_end_epoch_zero_means_the_number_of_epochs(kind: str) -> None:
    implied = _schedule(epochs=7, kind=kind, init=0.1)
    written = _schedule(epochs=30, kind=kind, init=0.1, end_epoch=7)
    assert [learning_rate(implied, i, 4) for i in range(40)] == [
        learning_rate(written, i, 4) for i in range(40)
    ]


def test_the_step_rate_decays_by_gamma_at_each_milestone() -> None:
    schedule = _schedule(epochs=120, kind="step", init=0.2, gamma=0.1, milestones=(31, 61, 91))
    rates = [_at(schedule, epoch) for epoch in (1, 30.9, 31, 60, 61, 91, 120)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.0002, 0.0002])


def test_the_linear_rate_is_linear_after_the_warm_up() -> None:
    schedule = _schedule(epochs=12, kind="linear", init=1.0, end=0.2, warmup_epochs=2)
    rates = [_at(schedule, epoch) for epoch in (0.5, 1, 2, 7, 12)]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 0.6, 0.2], abs=1e-9)


def test_the_cosine_rate_is_half_way_in_the_middle_and_flat_at_both_ends() -> None:
    schedule = _schedule(epochs=10, kind="cosine", init=1.0, end=0.1)
    assert _at(schedule, 5) == pytest.approx(0.55)
    assert _at(schedule, 10) == pytest.approx(0.1)
    assert 1.0 - _at(schedule, 0.1) < 3e-4
    assert _at(schedule, 9.9) - 0.1 < 3e-4


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_past_their_end_linear_and_cosine_stay_at_their_end_value(kind: str) -> None:
    schedule = _schedule(epochs=10, kind=kind, init=1.0, end=0.1)
    assert _at(schedule, 30) == pytest.approx(0.1)


def test_a_warm_up_as_long_as_the_run_only_rises() -> None:
    schedule = _schedule(epochs=3, kind="linear", init=1.0, end=0.0, warmup_epochs=4)
    rates = [learning_rate(schedule, i, 5) for i in range(15)]
    assert all(a < b for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["thor", "step", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 5.0, 50.0])
@pytest.mark.parametrize("end_epoch", [0.0, 1e-3, 2.5, 1e6])
@pytest.mark.parametrize("steps", [1, 3, 5338])
def test_every_rate_is_finite_and_between_zero_and_its_start(
    kind: str, warmup: float, end_epoch: float, steps: int
) -> None:
    schedule = _schedule(
        epochs=5,
        kind=kind,
        init=0.3,
        end=0.01,
        warmup_epochs=warmup,
        end_epoch=end_epoch,
        milestones=(1, 2),
    )
    for step in (0, 1, 2, 4, 9, 100, 10**6, 2**60):
        rate = learning_rate(schedule, step, steps)
        assert isinstance(rate, float)
        assert math.isfinite(rate)
        assert 0.0 <= rate <= 0.3 + 1e-12


@pytest.mark.parametrize(("step", "steps"), [(-1, 10), (0, 0), (3, -2)])
def test_invalid_steps_are_refused(step: int, steps: int) -> None:
    with pytest.raises(ValueError, match="step"):
        learning_rate(ScheduleSpec(), step, steps)
    with pytest.raises(ValueError, match="step"):
        damping(ThorSpec(), step, steps)
