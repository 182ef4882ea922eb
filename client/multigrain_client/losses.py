"""Loss points of a training job, and the curve they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from multigrain.v1.job_pb2 import JobEvent


@dataclass(frozen=True)
class LossPoint:
    """One optimiser step; meanings and units are those of ``multigrain.v1.LossEvent``.

    ``(attempt, step)`` is its key: a job that restarts from a checkpoint repeats the steps
    after it in the next attempt. See ``latest_curve``.
    """

    attempt: int
    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float
    classification_loss: float
    instance_loss: float
    learning_rate: float
    damping: float
    images_per_second: float
    data_wait: float
    refreshed_layers: int
    curvature_layers: int
    eta_seconds: float
    skipped: bool
    beta: float
    gem_p: float
    step_seconds: float
    kept_layers: int
    stopped_layers: int
    skipped_because: str
    skipped_total: int
    loss_scale: float
    seq: int
    time: datetime

    @classmethod
    def from_event(cls, event: JobEvent) -> LossPoint:
        """Of an event that carries a loss."""
        loss = event.loss
        return cls(
            attempt=event.attempt,
            step=loss.step,
            total_steps=loss.total_steps,
            epoch=loss.epoch,
            total_epochs=loss.total_epochs,
            loss=loss.loss,
            classification_loss=loss.classification_loss,
            instance_loss=loss.instance_loss,
            learning_rate=loss.learning_rate,
            damping=loss.damping,
            images_per_second=loss.images_per_second,
            data_wait=loss.data_wait,
            refreshed_layers=loss.refreshed_layers,
            curvature_layers=loss.curvature_layers,
            eta_seconds=loss.eta_seconds,
            skipped=loss.skipped,
            beta=loss.beta,
            gem_p=loss.gem_p,
            step_seconds=loss.step_seconds,
            kept_layers=loss.kept_layers,
            stopped_layers=loss.stopped_layers,
            skipped_because=loss.skipped_because,
            skipped_total=loss.skipped_total,
            loss_scale=loss.loss_scale,
            seq=event.seq,
            time=event.time.ToDatetime(tzinfo=UTC),
        )


def latest_curve(points: Iterable[LossPoint]) -> list[LossPoint]:
    """The curve without double points: the newest attempt wins, from its first step on.

    When attempt 2 begins at step 101, what attempt 1 did from step 101 on is void, also the
    steps that attempt 2 has not reached yet. Points may come in any order; the result is in
    the order of steps.
    """
    by_attempt: dict[int, list[LossPoint]] = {}
    for point in points:
        by_attempt.setdefault(point.attempt, []).append(point)
    curve: list[LossPoint] = []
    for attempt in sorted(by_attempt):
        newer = {point.step: point for point in by_attempt[attempt]}
        first = min(newer)
        curve = [point for point in curve if point.step < first]
        curve += [newer[step] for step in sorted(newer)]
    return curve
