"""Training steps of real networks. (ResNet-50 at 224 px: tests/e2e/test_resnet50.py.)"""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.losses.objective import JointObjective
from multigrain.model.gem import GeM
from multigrain.model.layouts import LAYOUTS, Layout
from multigrain.model.multigrain import MultiGrain
from multigrain.model.parameters import initialize
from multigrain.model.resnet import ResNet
from multigrain.optim.thor.capture import attach_taps
from multigrain.specs.training import (
    LearningRateSpec,
    OptimizerSpec,
    ScheduleSpec,
    ThorSpec,
    TrainingSpec,
)
from multigrain.train.step import TrainStep

pytestmark = pytest.mark.mindspore


def test_thor_preconditions_every_layer_of_a_resnet18() -> None:
    model = MultiGrain(ResNet(LAYOUTS["resnet18"]), GeM(3.0, learn=True), 4)
    layers = attach_taps(model, block_size=128)
    # The stem, 8 blocks of 2, 3 shortcuts, and the classifier.
    assert [layer.kind for layer in layers].count("conv") == 20
    assert len(layers) == 21


@pytest.mark.parametrize(
    ("layout", "layers"),
    [
        # All kinds of layers of a ResNet-18 and of an SE-ResNet-50, and a fraction of the
        # compilation time.
        pytest.param(Layout((1, 1, 1, 1), bottleneck=False), 13, id="resnet10"),
        pytest.param(Layout((1, 1, 1, 1), bottleneck=True, squeeze=True), 26, id="se_resnet14"),
    ],
)
def test_a_few_thor_steps_lower_the_loss(layout: Layout, layers: int) -> None:
    spec = TrainingSpec(
        optimizer=OptimizerSpec(thor=ThorSpec(frequency=3, damping_init=0.3)),
        schedule=ScheduleSpec(epochs=5, learning_rate=LearningRateSpec(kind="linear", init=0.01)),
    )
    model = MultiGrain(ResNet(layout), GeM(3.0, learn=True), 4)
    initialize(model, 0, zero_init_residual=True)
    step = TrainStep(model, JointObjective(spec.objective), spec, world=1, steps_per_epoch=10)
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 1], np.int32)
    images = rng.standard_normal((4, 3, 64, 64)) + labels[:, None, None, None]
    batch = images.astype(np.float32), labels, labels
    results = [step(*batch) for _ in range(5)]
    assert [r.refreshed_layers for r in results] == [layers, 0, 0, layers, 0]
    assert not any(r.skipped for r in results)
    assert results[-1].classification_loss < results[0].classification_loss
