"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is; the daemon or some job cannot work with a FAIL."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at ("mindspore", "data directory").
        level: how bad.
        message: what was found.
        fix: what to do about it; empty if nothing is to be done.
    """

    subject: str
    level: Level
    message: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.level.value:4}  {self.subject}: {self.message}"
        return f"{text}\n      -> {self.fix}" if self.fix else text


def ok(subject: str, message: str) -> Finding:
    return Finding(subject, Level.OK, message)


def warn(subject: str, message: str, fix: str) -> Finding:
    return Finding(subject, Level.WARN, message, fix)


def fail(subject: str, message: str, fix: str) -> Finding:
    return Finding(subject, Level.FAIL, message, fix)
