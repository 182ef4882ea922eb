"""What a display of a job does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from multigrain.v1.job_pb2 import Job, JobEvent


class Display(ABC):
    """A context manager that is fed with a job's events in order."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    @abstractmethod
    def event(self, event: JobEvent) -> None:
        """Shows one event."""

    @abstractmethod
    def end(self, job: Job) -> None:
        """Shows the job, which has ended."""
