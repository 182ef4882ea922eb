"""Real networks through the training step."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import build_model
from multigrain.spec.training import (
    LearningRateSpec,
    ModelSpec,
    OptimizerSpec,
    ScheduleSpec,
    ThorSpec,
    TrainingSpec,
)
from multigrain.train.step import TrainStep


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trunk", "size", "layers"),
    [("resnet18", 32, 21), ("resnet50", 224, 54), ("se_resnet50", 64, 86)],
)
def test_a_few_thor_steps_lower_the_loss(trunk: str, size: int, layers: int) -> None:
    spec = TrainingSpec(
        model=ModelSpec(trunk=trunk, image_size=size),
        optimizer=OptimizerSpec(thor=ThorSpec(frequency=3, damping_init=0.3)),
        schedule=ScheduleSpec(epochs=5, learning_rate=LearningRateSpec(kind="linear", init=0.01)),
    )
    step = TrainStep(
        build_model(spec.model, 4),
        JointObjective(spec.objective),
        spec,
        world=1,
        steps_per_epoch=10,
    )
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 1], np.int32)
    images = rng.standard_normal((4, 3, size, size)) + labels[:, None, None, None]
    batch = images.astype(np.float32), labels, labels
    results = [step(*batch) for _ in range(5)]
    assert [r.refreshed_layers for r in results] == [layers, 0, 0, layers, 0]
    assert not any(r.skipped for r in results)
    assert results[-1].classification_loss < results[0].classification_loss
