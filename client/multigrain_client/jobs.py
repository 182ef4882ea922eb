"""Jobs and their events as the client presents them: names, outcomes, loss curves."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC

from multigrain.v1.common_pb2 import ErrorKind
from multigrain.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    Job,
    JobEvent,
    JobKind,
    JobState,
    LossEvent,
)
from multigrain_client.errors import JobCancelled, JobFailed
from multigrain_client.json_format import enum_name
from multigrain_client.loss_point import LossPoint

_TERMINAL = frozenset({JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED})
_LOSS_FIELDS = tuple(field.name for field in LossEvent.DESCRIPTOR.fields)


def state_name(job: Job) -> str:
    """ "RUNNING" """
    return enum_name(JobState.DESCRIPTOR, job.state)


def kind_name(job: Job) -> str:
    """ "TRAINING" """
    return enum_name(JobKind.DESCRIPTOR, job.kind)


def is_terminal(job: Job) -> bool:
    """Whether the job has ended; only ResumeJob changes that."""
    return job.state in _TERMINAL


def raise_unless_succeeded(job: Job) -> Job:
    """The job itself, which must have ended.

    Raises:
        JobCancelled: if it was cancelled.
        JobFailed: if it failed.
    """
    name = f" ({job.name})" if job.name else ""
    noun = f"{kind_name(job).lower()} job {job.job_id}{name}"
    if job.state == JOB_STATE_CANCELLED:
        raise JobCancelled(f"{noun} was cancelled", job, kind="CANCELLED")
    if job.state == JOB_STATE_FAILED:
        kind = enum_name(ErrorKind.DESCRIPTOR, job.error.kind)
        reason = job.error.message or job.state_message or "no reason given"
        raise JobFailed(f"{noun} failed: {reason}", job, kind=kind)
    return job


def loss_point(event: JobEvent) -> LossPoint:
    """The loss point of an event that carries a loss."""
    return LossPoint(
        attempt=event.attempt,
        seq=event.seq,
        time=event.time.ToDatetime(tzinfo=UTC),
        **{name: getattr(event.loss, name) for name in _LOSS_FIELDS},
    )


class LossCurve(list[LossPoint]):
    """Loss points in the order of steps; a picture in a notebook."""

    def _repr_html_(self) -> str:
        from multigrain_client.notebook import curve_html

        return curve_html(self)


def latest_curve(points: Iterable[LossPoint]) -> LossCurve:
    """The loss curve without duplicate steps: the newest attempt wins, from its first step on.

    When attempt 2 starts at step 101, the points of attempt 1 from step 101 on are dropped, even
    those that attempt 2 has not reached yet. Points may come in any order; the result is in the
    order of steps.
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
    return LossCurve(curve)
