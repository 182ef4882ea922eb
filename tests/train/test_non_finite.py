"""Non-finite losses, gradients and factors: skipped, reported, and finally fatal."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.parameters import assign
from multigrain.model.state import model_state
from multigrain.optim.non_finite import (
    NonFinite,
    first_non_finite_factor,
    first_non_finite_gradient,
)
from multigrain.train.non_finite import NonFiniteStepCounter
from multigrain.train.step import TrainStep
from tests.train.tiny import CLASSES, batch, tiny_spec, tiny_step

pytestmark = pytest.mark.mindspore


class BreaksFactor(nn.Cell):
    """A tap with a NaN factor if its tensor is large; derivatives are unchanged."""

    def __init__(self, tap: nn.Cell) -> None:
        super().__init__()
        self.tap = tap

    def construct(self, x: Tensor, slot: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, slot: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        small = ops.cast(ops.reduce_max(x) < 1e3, mindspore.float32)
        return dout, self.tap.factor(x) * (small / small)


class BreaksDerivative(nn.Cell):
    """A tap with NaN derivatives."""

    def construct(self, x: Tensor, slot: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, slot: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        return dout * float("nan"), slot


def large(step: int) -> tuple[np.ndarray, ...]:
    """A batch that BatchNorm normalizes after the first convolution."""
    x, labels, ids = batch(step)
    return 1e5 * x, labels, ids


def go_on_with_large_ones(step: TrainStep, first: int) -> None:
    for number in range(first, first + 6):
        step(*large(number))


def go_on(step: TrainStep) -> None:
    for number in range(6):
        step(*batch(number))


def whole(step: TrainStep) -> dict[str, np.ndarray]:
    return model_state(step._model) | step.state()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"refresh": "trace", "frequency_growth": 1.0, "w2": 0.005},
        {"factor_average": 0.9},
    ],
    ids=["fixed", "trace", "average"],
)
def test_a_non_finite_factor_skips_the_step_and_defers_the_refresh(
    options: dict[str, Any],
) -> None:
    step = tiny_step(tiny_spec(frequency=2, max_skipped_steps=3, **options))
    conv = step._model.trunk.conv1
    conv.input_tap = BreaksFactor(conv.input_tap)
    assert step(*batch(0)).refreshed_layers == 3
    assert not step(*large(1)).skipped  # no refresh is due here
    before = whole(step)
    result = step(*large(2))
    assert result.skipped
    assert result.skipped_because == "the factor A of trunk.conv1 is not finite"
    assert (result.skipped_total, result.refreshed_layers, result.kept_layers) == (1, 0, 0)
    after = whole(step)
    assert after["refresh_due"] == 1
    changed = {name for name, v in after.items() if not np.array_equal(v, before[name])}
    assert changed == {"step", "skipped_in_row", "skipped_total", "refresh_due"}
    made_up = step(*batch(3))
    assert not made_up.skipped
    assert made_up.refreshed_layers + made_up.kept_layers == 3
    with pytest.raises(MultigrainError, match=r"factor A of trunk\.conv1 was not finite") as caught:
        go_on_with_large_ones(step, 4)
    assert caught.value.kind is ErrorKind.DIVERGED
    assert "3 steps in a row" in caught.value.message


def test_a_non_finite_gradient_is_reported_by_its_parameter() -> None:
    step = tiny_step(tiny_spec(max_skipped_steps=2))
    step._model.trunk.conv2.output_tap = BreaksDerivative()
    result = step(*batch(0))
    assert result.skipped_because == "the gradient of trunk.conv2.weight is not finite"
    with pytest.raises(MultigrainError, match=r"gradient of trunk\.conv2\.weight") as caught:
        step(*batch(1))
    assert caught.value.kind is ErrorKind.DIVERGED


def test_the_first_non_finite_layer_is_reported() -> None:
    step = tiny_step(tiny_spec("momentum", max_skipped_steps=3))
    step(*batch(0))
    before = model_state(step._model)
    images, labels, ids = batch(1)
    images[0, 0, 0, 0] = np.nan
    # ReLU(NaN) may be 0: the loss is finite then, but not its gradient.
    assert "(forward pass: the images) is not" in step(images, labels, ids).skipped_because
    for name in ("trunk.bn1.moving_mean", "trunk.conv1.weight"):
        np.testing.assert_array_equal(model_state(step._model)[name], before[name])
    layer = step._model.trunk.conv2.weight
    values = layer.asnumpy().copy()
    assign(layer, values * np.nan)
    assert "(forward pass: trunk.conv2) is not" in step(*batch(2)).skipped_because
    assign(layer, values)
    assert not step(*batch(3)).skipped
    assign(step._model.classifier.weight, np.full((CLASSES, 6), np.nan))
    with pytest.raises(MultigrainError, match=r"classification loss .*: classifier\)") as caught:
        go_on(step)
    assert caught.value.kind is ErrorKind.DIVERGED
    assert "schedule.learning_rate.init" in caught.value.message


def test_the_first_gradient_of_the_backward_pass_is_reported() -> None:
    good, bad = Tensor(np.ones(3, np.float32)), Tensor(np.array([1, np.inf], np.float32))
    assert first_non_finite_gradient([("c", good), ("b", bad), ("a", bad)]) == NonFinite(
        "gradient", "b"
    )
    large = Tensor(np.full(3, 1e30, np.float32))
    assert first_non_finite_gradient([("c", good), ("b", large), ("a", good)]) == NonFinite(
        "gradient", "b"
    )


@pytest.mark.parametrize(
    ("a", "g", "expected"),
    [
        ([1, 1, 1], [1, 1, 0], None),
        ([1, np.nan, np.inf], [np.nan, 1, 1], NonFinite("A", "two")),
        ([1, 1, 1], [np.nan, np.inf, 1], NonFinite("G", "two")),
    ],
)
def test_factors_a_are_searched_forward_and_g_backward(
    a: list[float], g: list[float], expected: NonFinite | None
) -> None:
    assert first_non_finite_factor(["one", "two", "three"], np.array([a, g], float)) == expected


def test_tolerated_steps_do_not_count_toward_the_limit() -> None:
    counter, problem = NonFiniteStepCounter(limit=2), NonFinite("gradient", "x")
    for step in range(5):
        counter.step_skipped(step, problem, tolerated=True)
    counter.step_skipped(6, problem, tolerated=False)
    counter.step_applied()
    counter.step_skipped(8, problem, tolerated=False)
    with pytest.raises(MultigrainError, match="step 9"):
        counter.step_skipped(9, problem, tolerated=False)
    assert (counter.total, counter.in_row) == (8, 2)
