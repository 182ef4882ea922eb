"""Early refreshes for residual branches that are initialized with zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from multigrain.losses.objective import JointObjective
from multigrain.model.gem import GeM
from multigrain.model.layers import Conv2d
from multigrain.model.multigrain import MultiGrain
from multigrain.optim.thor.refresh import FixedRule, TraceRule
from multigrain.train.step import TrainStep
from tests.train.tiny import CLASSES, batch, tiny_spec

pytestmark = pytest.mark.mindspore


class Residual(nn.Cell):
    """One convolution, and one residual branch whose last scale is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, 6, 3, stride=2, padding=1)
        self.branch = Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, gamma_init="zeros")
        self.out_channels = 6

    def construct(self, x: Tensor) -> Tensor:
        x = ops.relu(self.conv1(x))
        return ops.relu(x + self.norm(self.branch(x)))


def residual_step(early: tuple[int, ...]) -> TrainStep:
    net = MultiGrain(Residual(), GeM(3.0, learn=False), CLASSES)
    rng = np.random.default_rng(0)
    for p in net.trainable_params():
        if p.name.endswith("weight"):
            p.set_data(Tensor((0.5 * rng.standard_normal(p.shape)).astype(np.float32)))
    spec = tiny_spec(frequency=834, early_refreshes=early)
    return TrainStep(net, JointObjective(spec.objective), spec, world=1, steps_per_epoch=4)


def test_an_early_refresh_captures_branches_initialized_with_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = residual_step((3,))
    curvature = step._curvature
    assert curvature is not None
    names = [x.name for x in curvature.layers]
    seen: list[float] = []
    refresh = curvature.refresh

    def watched(tensors: Any, traces: np.ndarray, damping: float, number: int) -> Any:
        seen.append(float(traces[1][names.index("trunk.branch")]))
        return refresh(tensors, traces, damping, number)

    monkeypatch.setattr(curvature, "refresh", watched)
    results = [step(*batch(i)) for i in range(2)]
    # G = 0: only damping for the 834 steps to the next regular refresh.
    inverse = step.state()["curvature.trunk.branch.g_inverse"][0]
    np.testing.assert_allclose(inverse, np.eye(6) / np.sqrt(results[0].damping), rtol=1e-6)
    results += [step(*batch(i)) for i in range(2, 5)]
    assert [r.refreshed_layers for r in results] == [3, 0, 0, 3, 0]
    assert seen[0] == 0
    assert seen[1] > 0
    assert not np.array_equal(step.state()["curvature.trunk.branch.g_inverse"][0], inverse)


def test_early_refreshes_are_additional() -> None:
    rule = FixedRule(2, 5, early=(2, 5, 7))
    assert [step for step in range(13) if rule.due(step)] == [0, 2, 5, 7, 10]


@pytest.mark.parametrize("late", [0, 1])
def test_early_checks_do_not_change_the_intervals(late: int) -> None:
    """Nor does a check that was deferred because its step was skipped."""
    rule = TraceRule((1,), w1=0.0, w2=0.0, frequency=4, growth=2.0, largest=100, early=(2, 6))
    seen, missed = [], False
    for step in range(30):
        if missed or rule.due(step):
            if late and step in (2, 6) and not missed:
                missed = True
                continue
            missed = False
            seen.append(step)
            rule.check(step, [1.0], 0.1)
    assert seen == [0, 2 + late, 4, 6 + late, 12, 28]
