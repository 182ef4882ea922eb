"""A network small enough to train in milliseconds, with every kind of parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from multigrain.losses.objective import JointObjective
from multigrain.model.gem import GeM
from multigrain.model.layers import Conv2d
from multigrain.model.multigrain import MultiGrain
from multigrain.model.state import model_state
from multigrain.specs.training import (
    LearningRateSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ScheduleSpec,
    ThorSpec,
    TrainingSpec,
)
from multigrain.train.step import TrainStep

CLASSES = 3
SIDE = 8


class TinyTrunk(nn.Cell):
    """Two convolutions; BatchNorm uses batch statistics only if enabled."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, 5, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(5, use_batch_statistics=None if batch_norm else False)
        self.conv2 = Conv2d(5, 6, 3, padding=1)
        self.out_channels = 6

    def construct(self, x: Tensor) -> Tensor:
        return ops.relu(self.conv2(ops.relu(self.bn1(self.conv1(x)))))


def tiny_model(*, batch_norm: bool = True, learn_gem_p: bool = True) -> MultiGrain:
    net = MultiGrain(TinyTrunk(batch_norm), GeM(3.0, learn=learn_gem_p), CLASSES)
    rng = np.random.default_rng(0)
    for p in net.trainable_params():
        if p.name.endswith("weight"):
            p.set_data(Tensor((0.5 * rng.standard_normal(p.shape)).astype(np.float32)))
    return net


def tiny_spec(
    kind: str = "thor",
    *,
    instance_loss: str = "margin",
    block_size: int = 16,
    frequency: int = 3,
    loss_scale: float = 1.0,
    clip_norm: float = 0.0,
    max_skipped_steps: int = 3,
    **thor: Any,
) -> TrainingSpec:
    """``thor``: further fields of ThorSpec."""
    return TrainingSpec(
        objective=ObjectiveSpec(instance_loss=instance_loss),
        optimizer=OptimizerSpec(
            kind=kind,
            loss_scale=loss_scale,
            clip_norm=clip_norm,
            weight_decay=1e-3,
            max_skipped_steps=max_skipped_steps,
            thor=ThorSpec(
                **{"frequency": frequency, "block_size": block_size, "damping_init": 0.1, **thor}
            ),
        ),
        schedule=ScheduleSpec(epochs=10, learning_rate=LearningRateSpec(kind="linear", init=0.05)),
        seed=11,
    )


def tiny_step(
    spec: TrainingSpec, *, world: int = 1, batch_norm: bool = True, steps_per_epoch: int = 4
) -> TrainStep:
    return TrainStep(
        tiny_model(batch_norm=batch_norm),
        JointObjective(spec.objective),
        spec,
        world=world,
        steps_per_epoch=steps_per_epoch,
    )


def batch(step: int, images: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``images`` images of two copies each."""
    rng = np.random.default_rng([7, step])
    labels = rng.integers(0, CLASSES, images)
    base = rng.standard_normal((images, 3, SIDE, SIDE)) + labels[:, None, None, None]
    x = np.repeat(base, 2, 0) + 0.1 * rng.standard_normal((2 * images, 3, SIDE, SIDE))
    ids = np.repeat(100 * step + np.arange(images), 2)
    return x.astype(np.float32), np.repeat(labels, 2).astype(np.int32), ids.astype(np.int32)


def weights(step: TrainStep) -> dict[str, np.ndarray]:
    """Returns the weights of the step's model."""
    return model_state(step._model)


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
