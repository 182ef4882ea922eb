"""A job as the daemon knows it."""

from __future__ import annotations

from dataclasses import dataclass

from multigrain.events.records import JobState
from multigrain.jobs.request import JobRequest
from multigrain_server.jobs.view import JobView


@dataclass(frozen=True)
class Job:
    """What was asked, what happened, and what only the daemon knows.

    Attributes:
        cancel_requested: whether CancelJob was called in this run of the job.
        waiting: why a queued job waits, or "".
    """

    request: JobRequest
    view: JobView
    cancel_requested: bool = False
    waiting: str = ""

    @property
    def job_id(self) -> str:
        return self.request.job_id

    @property
    def state(self) -> JobState:
        """The state shown: a job asked to end is STOPPING before its runner has said so."""
        if self.cancel_requested and self.view.state in (JobState.STARTING, JobState.RUNNING):
            return JobState.STOPPING
        return self.view.state

    @property
    def state_message(self) -> str:
        if self.view.state is JobState.QUEUED and self.waiting:
            return self.waiting
        if self.state is not self.view.state:
            return "asked to end"
        return self.view.state_message
