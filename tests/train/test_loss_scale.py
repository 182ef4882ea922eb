"""The loss scale: transparent, reduced by overflows, saved in checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.parameters import assign
from multigrain.model.state import load_model_state, model_state
from multigrain.optim.loss_scale import LossScale
from multigrain.specs.training import OptimizerSpec, TrainingSpec
from multigrain.train.step import TrainStep
from tests.train.step_pool import StepPool
from tests.train.tiny import CLASSES, batch, tiny_spec, tiny_step

pytestmark = pytest.mark.mindspore


def scaled(spec: TrainingSpec, **fields: Any) -> TrainingSpec:
    """With a dynamic scale, which is not the default on the CPU."""
    optimizer = spec.optimizer.model_copy(update={"loss_scaling": "dynamic", **fields})
    return spec.model_copy(update={"optimizer": optimizer})


def whole(step: TrainStep) -> dict[str, np.ndarray]:
    return model_state(step._model) | step.state()


def test_float32_has_no_loss_scale_by_default() -> None:
    scale = LossScale(OptimizerSpec(), "fp32")
    assert (scale.value, scale.active, scale.dynamic, scale.state()) == (1.0, False, False, {})
    half = LossScale(OptimizerSpec(), "fp16")
    assert (half.value, half.active, half.dynamic) == (1024.0, True, True)
    static = LossScale(OptimizerSpec(loss_scaling="static", loss_scale=64.0), "fp16")
    assert not static.step_overflowed()
    assert (static.value, static.active, static.dynamic) == (64.0, True, False)


def test_a_dynamic_scale_doubles_and_halves_between_its_bounds() -> None:
    spec = OptimizerSpec(
        loss_scaling="dynamic", loss_scale=4, loss_scale_steps=2, loss_scale_min=2, loss_scale_max=8
    )
    scale = LossScale(spec, "fp32")
    seen = []
    for good in "++++++-+-++--":
        if good == "+":
            scale.step_applied()
        else:
            seen.append(scale.step_overflowed())
        seen.append(scale.value)
    assert seen == [4, 8, 8, 8, 8, 8, True, 4, 4, True, 2, 2, 4, True, 2, False, 2]


def test_a_loss_scale_does_not_change_steps_and_factors(shared_step: StepPool) -> None:
    """Also while it doubles; scaling by a power of two is exact."""
    plain = shared_step(tiny_spec())
    other = tiny_step(scaled(tiny_spec(), loss_scale=1024.0, loss_scale_steps=2))
    assert plain.state().keys() | {"loss_scale.value", "loss_scale.good_steps"} == (
        other.state().keys()
    )
    scales = []
    for i in range(5):
        first, second = plain(*batch(i)), other(*batch(i))
        assert first.loss == pytest.approx(second.loss, rel=1e-6)
        scales.append(second.loss_scale)
    assert scales == [1024, 1024, 2048, 2048, 4096]
    found = whole(other)
    assert (found["loss_scale.value"], found["loss_scale.good_steps"]) == (4096, 1)
    for name, values in whole(plain).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-6, atol=1e-7, err_msg=name)

    images, labels, ids = (Tensor(x) for x in batch(9))
    noise = plain._objective.noise(len(labels), (0,))
    taken = [
        step._gradients(images, labels, ids, noise, scale=scale, stop=False, factors=True)
        for step, scale in ((plain, 1.0), (other, 2.0**20))
    ]
    np.testing.assert_allclose(taken[0].traces, taken[1].traces, rtol=1e-6)
    for one, two in zip(taken[0].factors, taken[1].factors, strict=True):
        np.testing.assert_allclose(one.asnumpy(), two.asnumpy(), rtol=1e-6, atol=1e-9)


def overflowing(**fields: Any) -> TrainStep:
    """The gradients are finite, but G, their square, is not."""
    spec = tiny_spec(max_skipped_steps=2)
    return tiny_step(scaled(spec, loss_scale=2.0**68, loss_scale_max=2.0**68, **fields))


def test_an_overflow_halves_the_scale_and_is_tolerated() -> None:
    step = overflowing()
    before = whole(step)
    results = [step(*batch(i)) for i in range(10)]
    skipped = [r.skipped for r in results]
    overflows = sum(skipped)
    assert 3 <= overflows < 9  # more than max_skipped_steps
    assert skipped == [True] * overflows + [False] * (10 - overflows)
    expected = [2.0 ** (68 - min(i, overflows)) for i in range(10)]
    assert [r.loss_scale for r in results] == expected
    assert results[0].skipped_because.startswith("the factor G of ")
    assert results[overflows].refreshed_layers == 3  # the deferred refresh
    state = whole(step)
    assert (state["skipped_in_row"], state["skipped_total"]) == (0, overflows)
    assert not np.array_equal(state["trunk.conv1.weight"], before["trunk.conv1.weight"])

    # The scale does not handle a non-finite loss.
    assign(step._model.classifier.weight, np.full((CLASSES, 6), np.nan))
    assert "loss" in step(*batch(10)).skipped_because
    assert step.state()["loss_scale.value"] == expected[-1]
    assert step.state()["skipped_in_row"] == 1


def test_at_the_minimum_scale_an_overflow_counts() -> None:
    step = overflowing(loss_scale_min=2.0**67)
    assert step(*batch(0)).skipped  # halves to the minimum
    assert step(*batch(1)).skipped
    with pytest.raises(MultigrainError, match="2 steps in a row") as caught:
        step(*batch(2))
    assert caught.value.kind is ErrorKind.DIVERGED


def test_the_scale_continues_from_a_checkpoint() -> None:
    spec = scaled(tiny_spec("momentum"), loss_scale=8.0, loss_scale_steps=3)
    whole_run = tiny_step(spec)
    for i in range(2):
        whole_run(*batch(i))
    model, state = model_state(whole_run._model), whole_run.state()
    rest = [whole_run(*batch(i)) for i in range(2, 8)]
    assert [r.loss_scale for r in rest] == [8, 16, 16, 16, 32, 32]
    resumed = tiny_step(spec)
    load_model_state(resumed._model, model)
    resumed.load_state(state)
    assert [resumed(*batch(i)) for i in range(2, 8)] == rest
    for name, values in whole(resumed).items():
        np.testing.assert_array_equal(values, whole(whole_run)[name], err_msg=name)
