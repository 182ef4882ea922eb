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
        disk_full: whether it waits for room on its disk.
    """

    request: JobRequest
    view: JobView
    cancel_requested: bool = False
    waiting: str = ""
    disk_full: bool = False

    @property
    def job_id(self) -> str:
        return self.request.job_id

    @property
    def state(self) -> JobState:
        """The state shown: a job asked to end is STOPPING before its runner has said so."""
        return JobState.STOPPING if self._being_ended else self.view.state

    @property
    def _being_ended(self) -> bool:
        return self.cancel_requested and not self.view.state.terminal

    @property
    def state_message(self) -> str:
        if self.disk_full and not self.view.state.terminal:
            return "the disk of the data directory is full: what the job has to say waits for room"
        if self._being_ended and self.view.state is not JobState.STOPPING:
            return "asked to end"
        if self.view.state is JobState.QUEUED and self.waiting:
            return self.waiting
        return self.view.state_message
