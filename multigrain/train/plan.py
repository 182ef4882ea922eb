"""What a training run will do: steps, and estimates of time and memory. Runs no network."""

from __future__ import annotations

import math
import time
from typing import Final

import numpy as np

from multigrain.data.inspection_report import TrainingPlan
from multigrain.data.sampler import RepeatedSampler
from multigrain.model.cost import PASSES, trunk_cost
from multigrain.specs.training import TrainingSpec

# Training reaches this share of a matrix product's speed (measured with MindSpore 2.8 on two cores:
# ResNet-18 at 64 and 128 px, ResNet-50 at 96 px).
_EFFICIENCY: Final = 0.4
_PROBE: Final = 1024  # rows and columns of the matrices
_PROBE_SECONDS: Final = 0.2


def plan(
    spec: TrainingSpec,
    images: int,
    held_out: int,
    *,
    measured: float = 0.0,
    measured_in: str = "",
    flops: float = 0.0,
) -> TrainingPlan:
    """Plans a training run.

    Args:
        spec: the training run.
        images: images that are trained on.
        held_out: images that are scored by schedule.
        measured: images per second of an earlier run of the same network on the same devices.
        measured_in: that run's job.
        flops: speed of this machine, see :func:`machine_flops`; 0 = unknown.

    Raises:
        MultigrainError: DATASET, if there are fewer images than workers.
    """
    schedule, world = spec.schedule, spec.devices.count
    sampler = RepeatedSampler(
        images,
        repeats=spec.augmentation.repeats,
        batch_size=schedule.batch_size,
        rank=0,
        world=world,
        length_factor=schedule.length_factor,
        seed=spec.seed,
    )
    steps = sampler.steps_per_epoch * schedule.epochs
    if schedule.max_steps:
        steps = min(steps, schedule.max_steps)
    epochs = math.ceil(steps / sampler.steps_per_epoch)
    every = spec.evaluation.every_epochs
    evaluated = held_out * math.ceil(epochs / every) if every else 0
    step_images = schedule.batch_size * world
    cost = trunk_cost(spec.model.trunk, spec.model.image_size, spec.model.stem)
    rate, basis = measured, f"measured in job {measured_in}"
    if not rate and flops:
        rate, basis = _EFFICIENCY * flops / (2 * PASSES * cost.macs), "by the cost of the network"
    # An evaluation is a forward pass.
    seconds = (steps * step_images + evaluated / PASSES) / rate if rate else -1.0
    if not rate:
        basis = "no earlier run of this network on this device"
    return TrainingPlan(
        sampler.steps_per_epoch,
        epochs,
        steps,
        step_images,
        evaluated,
        seconds,
        basis,
        cost.step_bytes(schedule.batch_size),
    )


def machine_flops() -> float:
    """Measures float32 operations per second of matrix products on all cores."""
    a = np.ones((_PROBE, _PROBE), np.float32)
    a @ a
    begun, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - begun) < _PROBE_SECONDS:
        a @ a
        done += 1
    return 2 * _PROBE**3 * done / taken
