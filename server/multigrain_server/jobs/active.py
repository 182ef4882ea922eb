"""A job that has not ended, in the supervisor's hands."""

from __future__ import annotations

from dataclasses import dataclass

from multigrain.events.records import JobState
from multigrain.jobs.folder import JobFolder
from multigrain.jobs.request import JobRequest
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.runner_process import RunnerProcess


@dataclass
class ActiveJob:
    """Mutable state of one supervised job.

    Attributes:
        runner: its runner while that lives.
        started: whether a runner was ever started or found for this run of the job.
        crashes: runners that ended in a row without bringing the job on.
        not_before: loop time before which no runner is started again.
        look_at: loop time before which it is not looked at again, after that went wrong.
        told_to_end: whether its runner has heard of ``cancel_requested``.
        disk_full: whether its disk has no room for an event.
        saved_at: loop time of the last write to the index.
    """

    request: JobRequest
    folder: JobFolder
    feed: EventFeed
    runner: RunnerProcess | None = None
    started: bool = False
    crashes: int = 0
    not_before: float = 0.0
    look_at: float = 0.0
    cancel_requested: bool = False
    told_to_end: bool = False
    waiting: str = ""
    disk_full: bool = False
    saved_at: float = 0.0
    saved_state: JobState | None = None
    saved_seq: int = -1

    @property
    def job_id(self) -> str:
        return self.request.job_id

    @property
    def queued(self) -> bool:
        """Whether it still waits for its first runner of this run."""
        return not self.started and self.feed.view.state is JobState.QUEUED

    @property
    def queue_key(self) -> tuple[str, str]:
        return (self.feed.view.queued_time, self.job_id)

    def job(self) -> Job:
        return Job(
            self.request, self.feed.view, self.cancel_requested, self.waiting, self.disk_full
        )
