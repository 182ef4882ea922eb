"""How a job that was waited for has ended."""

from __future__ import annotations

import time

from multigrain.v1.common_pb2 import ErrorKind
from multigrain.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_FAILED, JOB_STATE_SUCCEEDED, Job
from multigrain_client.errors import JobCancelled, JobFailed
from multigrain_client.messages import enum_name
from multigrain_client.requests import kind_name

TERMINAL = frozenset({JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED})


def is_terminal(job: Job) -> bool:
    """Whether the job has ended; only ResumeJob changes that."""
    return job.state in TERMINAL


def raise_unless_succeeded(job: Job) -> Job:
    """The job itself, which has ended.

    Raises:
        JobCancelled: if it was cancelled.
        JobFailed: if it failed.
    """
    if job.state == JOB_STATE_CANCELLED:
        raise JobCancelled(f"{_noun(job)} was cancelled", job, kind="CANCELLED")
    if job.state == JOB_STATE_FAILED:
        kind = enum_name(ErrorKind.DESCRIPTOR, job.error.kind)
        reason = job.error.message or job.state_message or "no reason was given"
        raise JobFailed(f"{_noun(job)} failed: {reason}", job, kind=kind)
    return job


class Deadline:
    """A time-out that several calls share. None = never."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def remaining(self) -> float | None:
        """Seconds left, never under a millisecond (gRPC takes no zero)."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.001)

    @property
    def passed(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def within(self, delay: float) -> float:
        """The delay, cut to what is left."""
        return delay if self.remaining is None else min(delay, self.remaining)


def _noun(job: Job) -> str:
    name = f" ({job.name})" if job.name else ""
    return f"{kind_name(job).lower()} job {job.job_id}{name}"
