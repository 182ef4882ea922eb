"""Starts another training run with the compiled graphs of an earlier one.

Compiling takes as long as several epochs of these small runs. Most of what a search varies
(learning rate, damping, refresh rule) is not a constant of the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from multigrain.optim.thor.curvature import FactorAverage, _rule
from multigrain.specs.training import TrainingSpec
from multigrain.train.step import TrainStep


def constants(spec: TrainingSpec) -> str:
    """The settings that are compiled into the graphs. Jobs with equal ones can share graphs."""
    optimizer, schedule = spec.optimizer, spec.schedule
    return repr(
        (
            spec.model.model_copy(update={"zero_init_residual": True}),  # initial weights only
            spec.objective,
            spec.augmentation.repeats,
            spec.precision,
            schedule.batch_size,
            optimizer.model_copy(update={"thor": None}),
            (optimizer.thor.block_size, optimizer.thor.kl_clip),
        )
    )


def reset(
    step: TrainStep,
    spec: TrainingSpec,
    unused: Mapping[str, NDArray[Any]],
    steps_per_epoch: int,
) -> None:
    """Resets a step to its initial state, with other hyperparameters.

    Uses private attributes: only benchmarks reuse a step.

    Args:
        unused: the step's state before its first call.
    """
    step._spec, step._steps_per_epoch = spec, steps_per_epoch
    state = {name: value for name, value in unused.items() if not name.startswith("curvature_")}
    curvature, thor = step._curvature, spec.optimizer.thor
    if curvature:
        curvature._rule = _rule(thor, curvature.layers, steps_per_epoch)
        curvature._pi_correction = thor.pi_correction
        curvature._average = None
        if thor.factor_average > 0:
            curvature._average = FactorAverage(curvature.layers, thor.factor_average)
        state |= curvature.state()
    step.load_state(state)
