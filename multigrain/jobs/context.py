"""What a worker process knows of its job, and how it speaks to the runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from multigrain.events.records import Record
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest


class Reporter(Protocol):
    """The way from a worker to the runner."""

    def emit(self, record: Record) -> None:
        """Hands a record to the runner, which numbers and stores it. Any rank may."""
        ...

    def alive(self) -> None:
        """Tells the watchdog that work goes on. ``emit`` does so as well."""
        ...

    @property
    def stop_requested(self) -> bool:
        """Whether the runner asked for an orderly end (save, then return)."""
        ...


@dataclass(frozen=True)
class WorkerContext:
    """Given to ``multigrain.train.run``, ``multigrain.evaluate.run`` and ``multigrain.export.run``.

    Each takes a WorkerContext and returns an ``Outcome``; it raises MultigrainError for a
    failure that a person can act on, anything else is a defect.
    """

    request: JobRequest
    folder: JobFolder
    reporter: Reporter
    attempt: int = 1
    rank: int = 0
    world: int = 1
    resume: bool = field(default=False)


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: ``stopped`` if it obeyed ``stop_requested`` before the work was done."""

    stopped: bool = False
    message: str = ""
