"""Learning rate and damping as pure functions of the step. Does not import MindSpore.

Steps count from 0. The epoch of a step is the fraction ``(step + 1) / steps_per_epoch``: the
last step of the first epoch is at epoch 1.0 exactly. That is the convention of the ModelZoo's
``lr_generator.py``, whose values these functions reproduce.
"""

from __future__ import annotations

import math

from multigrain.specs.training import LearningRateSpec, ScheduleSpec, ThorSpec

# THOR halves the rate at each milestone, whatever `gamma` says ("step" has `gamma`).
_THOR_MILESTONE_FACTOR = 0.5
# Epochs in which THOR's damping falls by the factor `damping_decay`.
_DAMPING_PERIOD = 10.0


def learning_rate(spec: ScheduleSpec, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of one step.

    With ``e`` the epoch of the step, ``w`` the warm-up and ``E`` = ``end_epoch``, or ``epochs``
    where ``end_epoch`` is 0:

    * ``thor``: ``init * (1 - e / E) ** decay``, halved once for each milestone ``<= e``
      (``get_thor_lr`` of the ModelZoo). It has no warm-up.
    * ``step``: ``init * gamma ** (number of milestones <= e)``.
    * ``linear``: linear from ``init`` at ``w`` to ``end`` at ``E``.
    * ``cosine``: half a cosine from ``init`` at ``w`` to ``end`` at ``E``.

    ``step``, ``linear`` and ``cosine`` rise linearly from 0 to ``init`` while ``e < w``. Past
    ``E``, ``linear`` and ``cosine`` stay at ``end`` and ``thor`` at 0 (its formula would take a
    power of a negative number there). ``decay`` 0 is a constant rate. ``max_steps`` ends a run
    early and does not change the curve.

    Args:
        spec: the schedule.
        step: index of the step in the whole run, from 0.
        steps_per_epoch: steps of one epoch, at least 1.

    Returns:
        A finite rate, at least 0.

    Raises:
        ValueError: ``step`` is negative or ``steps_per_epoch`` is below 1.
    """
    epoch = _epoch(step, steps_per_epoch)
    rate = spec.learning_rate
    end_epoch = rate.end_epoch or float(spec.epochs)
    if rate.kind == "thor":
        left = max(0.0, 1.0 - epoch / end_epoch)
        halvings = math.pow(_THOR_MILESTONE_FACTOR, _passed(rate, epoch))
        return rate.init * math.pow(left, rate.decay) * halvings
    if epoch < rate.warmup_epochs:
        return rate.init * epoch / rate.warmup_epochs
    if rate.kind == "step":
        return rate.init * math.pow(rate.gamma, _passed(rate, epoch))
    done = _progress(epoch, rate.warmup_epochs, end_epoch)
    if rate.kind == "cosine":
        done = 0.5 * (1.0 - math.cos(math.pi * done))
    return rate.init + (rate.end - rate.init) * done


def damping(spec: ThorSpec, step: int, steps_per_epoch: int) -> float:
    """Returns THOR's damping lambda of one step: ``damping_init * damping_decay ** (epoch / 10)``.

    ``get_thor_damping`` of the ModelZoo, but never below ``damping_min``: float32 cannot invert
    a singular factor with hardly any damping. Arguments and errors as in :func:`learning_rate`.
    """
    epoch = _epoch(step, steps_per_epoch)
    decayed = spec.damping_init * math.pow(spec.damping_decay, epoch / _DAMPING_PERIOD)
    return max(spec.damping_min, decayed)


def _epoch(step: int, steps_per_epoch: int) -> float:
    if step < 0:
        raise ValueError(f"step {step} is negative")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}, must be at least 1")
    return (step + 1) / steps_per_epoch


def _passed(rate: LearningRateSpec, epoch: float) -> int:
    return sum(1 for milestone in rate.milestones if epoch >= milestone)


def _progress(epoch: float, start: float, end: float) -> float:
    """Fraction of the way from ``start`` to ``end``, in [0, 1]; 1 if ``end <= start``."""
    if end <= start:
        return 1.0
    return min(1.0, (epoch - start) / (end - start))
