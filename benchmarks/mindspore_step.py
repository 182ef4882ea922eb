"""Training steps in MindSpore on one random batch, for :mod:`benchmarks.alternating`.

``--kind thor`` and ``momentum`` are the step of a training job; ``bare`` is the plain MindSpore
loop: ``nn.TrainOneStepCell`` and ``nn.Momentum``.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn

from benchmarks.alternating import Measurement, peak_mib, serve
from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import MultiGrain, build_model
from multigrain.specs.training import (
    ModelSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ScheduleSpec,
    ThorSpec,
    TrainingSpec,
)
from multigrain.train.step import TrainStep

CLASSES = 1000
# Profiled parts of a refresh: (end of the file name, function) -> part.
PARTS = {
    ("train/gradients.py", "__call__"): "forward, backward and factors",
    ("thor/curvature.py", "refresh"): "refresh on the host",
    ("thor/inverse.py", "damped_inverse"): "of it: inverses",
    ("model/assign.py", "assign"): "of it: inverses into the graph's memory",
}


@dataclass(frozen=True)
class Batch:
    """Random images (N, 3, side, side) and labels; instances occur in pairs."""

    images: Tensor
    labels: Tensor
    instances: Tensor

    @classmethod
    def of(cls, size: int, side: int) -> Batch:
        rng = np.random.default_rng(0)
        return cls(
            Tensor(rng.standard_normal((size, 3, side, side), dtype=np.float32)),
            Tensor(rng.integers(0, CLASSES, size).astype(np.int32)),
            Tensor((np.arange(size) // 2).astype(np.int32)),
        )


def training_spec(
    kind: str, batch: int, side: int, *, trunk: str = "resnet50", frequency: int = 100
) -> TrainingSpec:
    """The specification of a step; all other fields have their defaults."""
    return TrainingSpec(
        model=ModelSpec.model_validate({"trunk": trunk, "image_size": side}),
        objective=ObjectiveSpec(instance_loss="none", classification_weight=1.0),
        optimizer=OptimizerSpec(
            kind="thor" if kind == "thor" else "momentum", thor=ThorSpec(frequency=frequency)
        ),
        schedule=ScheduleSpec(batch_size=batch),
    )


def product_step(spec: TrainingSpec, *, world: int = 1) -> tuple[MultiGrain, TrainStep]:
    """The step of a training job."""
    model = build_model(spec.model, CLASSES)
    step = TrainStep(model, JointObjective(spec.objective), spec, world=world, steps_per_epoch=1000)
    return model, step


class Loss(nn.Cell):
    """Cross-entropy of a network's logits."""

    def __init__(self, model: MultiGrain) -> None:
        super().__init__()
        self.model = model
        self.loss = nn.CrossEntropyLoss()

    def construct(self, images: Tensor, labels: Tensor) -> Tensor:
        _, logits = self.model(images)
        return self.loss(logits, labels)


def bare_step(spec: TrainingSpec) -> Callable[[Batch], Any]:
    """The same network and loss in MindSpore's training cell."""
    model = build_model(spec.model, CLASSES)
    optimizer = nn.Momentum(
        model.trainable_params(), 0.01, spec.optimizer.momentum, spec.optimizer.weight_decay
    )
    train = nn.TrainOneStepCell(Loss(model), optimizer)
    train.set_train()
    return lambda batch: train(batch.images, batch.labels).asnumpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["thor", "momentum", "bare"], required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--trunk", default="resnet50")
    parser.add_argument("--frequency", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=3)
    options = parser.parse_args()
    mindspore.set_device("CPU")
    spec = training_spec(
        options.kind, options.batch, options.side,
        trunk=options.trunk, frequency=options.frequency,
    )  # fmt: skip
    batch = Batch.of(options.batch, options.side)
    sizes: dict[str, int] = {}
    if options.kind == "bare":
        bare = bare_step(spec)

        def one() -> int:
            bare(batch)
            return 0
    else:
        model, step = product_step(spec)

        def one() -> int:
            result = step(batch.images, batch.labels, batch.instances)
            model.classifier.bias.asnumpy()  # waits for the update
            return result.refreshed_layers

    def take(steps: int, parts: bool) -> Measurement:
        seconds, refreshed = [], []
        profile = cProfile.Profile()
        for _ in range(steps):
            begin = time.perf_counter()
            refreshed.append(profile.runcall(one) if parts else one())
            seconds.append(time.perf_counter() - begin)
        profiled = _parts(profile) if parts else {}
        return Measurement(seconds, refreshed, peak_mib(), profiled, sizes)

    take(options.warm_up, False)
    if options.kind != "bare":
        sizes = {p.name: int(p.nbytes) for p in model.get_parameters()}
        sizes |= {name: int(a.nbytes) for name, a in step.state().items()}
    serve(take)


def _parts(profile: cProfile.Profile) -> dict[str, float]:
    seconds = {}
    for (path, _, function), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for (end, name), part in PARTS.items():
            if path.endswith(end) and function == name:
                seconds[part] = float(row[3])
    return seconds


if __name__ == "__main__":
    main()
