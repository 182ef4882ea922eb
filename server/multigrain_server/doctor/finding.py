"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from multigrain.text import printable


class Level(Enum):
    """Severity. With a FAIL, the daemon or some jobs cannot work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        subject: what was checked ("mindspore", "data directory").
        level: severity.
        message: the result.
        fix: how to fix it; "" = nothing to fix.
    """

    subject: str
    level: Level
    message: str
    fix: str = ""

    def __str__(self) -> str:
        # Names of files and folders are among it.
        text = f"{self.level.value:4}  {printable(f'{self.subject}: {self.message}')}"
        return f"{text}\n      -> {printable(self.fix)}" if self.fix else text


def ok(subject: str, message: str) -> Finding:
    """A check that passed."""
    return Finding(subject, Level.OK, message)


def warn(subject: str, message: str, fix: str) -> Finding:
    """Something that works, but not well."""
    return Finding(subject, Level.WARN, message, fix)


def fail(subject: str, message: str, fix: str) -> Finding:
    """Something that does not work."""
    return Finding(subject, Level.FAIL, message, fix)
