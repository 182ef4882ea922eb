"""Who else needs a model: jobs, of which this package knows no more."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class ModelUsers(Protocol):
    """Answers are job ids, "" for none."""

    def reader_of(self, folder: Path) -> str:
        """A job that reads what is in a folder."""
        ...

    def exporter_of(self, name: str) -> str:
        """A job that will write a model of this name."""
        ...


class NoUsers:
    """Where there are no jobs."""

    def reader_of(self, folder: Path) -> str:
        return ""

    def exporter_of(self, name: str) -> str:
        return ""
