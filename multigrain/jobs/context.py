"""What the code of a job kind gets from its worker process, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from multigrain.events.records import Record
from multigrain.files import Roots
from multigrain.images.limits import ImageLimits, read_limits
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest


class Reporter(Protocol):
    """Reports from a worker to the runner."""

    def emit(self, record: Record) -> None:
        """Sends a record to the runner, which writes it to the event log. Any rank may."""
        ...

    def alive(self) -> None:
        """Sends a sign of life, without which the runner ends the attempt. ``emit`` is one too."""
        ...

    @property
    def stop_requested(self) -> bool:
        """Whether the worker should save a checkpoint and return."""
        ...


@dataclass(frozen=True)
class WorkerContext:
    """Argument of ``multigrain.train.run``, ``multigrain.evaluate.run``, ``multigrain.export.run``.

    These return an ``Outcome``. They raise MultigrainError for a failure that the user can fix; any
    other exception is a defect.

    Attributes:
        request: the job's specification.
        folder: the job's files.
        reporter: reports to the runner.
        attempt: number of the attempt.
        rank: of this worker.
        world: number of workers.
        resume: continue from the latest checkpoint, if there is one.
    """

    request: JobRequest
    folder: JobFolder
    reporter: Reporter
    attempt: int = 1
    rank: int = 0
    world: int = 1
    resume: bool = field(default=False)

    @property
    def image_limits(self) -> ImageLimits:
        """The daemon's limits of an image file; the defaults without a daemon."""
        return read_limits(self.folder.image_limits)

    @property
    def roots(self) -> Roots:
        """The folders that files named by the request must be in; None without a daemon."""
        return self.image_limits.roots


@dataclass(frozen=True)
class Outcome:
    """How a worker ended; ``stopped``: because of ``stop_requested``, before its work was done."""

    stopped: bool = False
    message: str = ""
