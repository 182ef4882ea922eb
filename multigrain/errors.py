"""The kinds of errors, and the exception that carries one to the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class ErrorKind(Enum):
    """Kinds of errors, with the names and numbers of ``multigrain.v1.ErrorKind``."""

    INVALID_FIELD = 1
    PATH_NOT_ALLOWED = 2
    NOT_FOUND = 3
    ALREADY_EXISTS = 4
    WRONG_STATE = 5
    OVERLOADED = 6
    UNAVAILABLE = 7
    DEADLINE = 8
    CANCELLED = 9
    UNAUTHENTICATED = 10
    FORBIDDEN = 11
    INTERNAL = 12
    UNSUPPORTED = 13
    DATA_LOSS = 14
    IMAGE_UNREADABLE = 20
    IMAGE_FORMAT = 21
    IMAGE_TOO_LARGE = 22
    NOT_FINITE = 23
    IMAGE_HARMFUL = 24
    DATASET = 40
    WORKER_DIED = 41
    CLUSTER_TIMEOUT = 42
    DIVERGED = 43
    CHECKPOINT = 44
    STORAGE = 45
    RUNNER_LOST = 46
    STALLED = 47


@dataclass(frozen=True)
class FieldViolation:
    """An invalid field: its path ("spec.schedule.epochs") and the problem."""

    field: str
    message: str


class MultigrainError(Exception):
    """An error that the user can do something about.

    Args:
        kind: of the error.
        message: the problem, where it is and how to fix it; never a path outside the data roots.
        violations: every invalid field of an INVALID_FIELD error.
        retry_after: seconds after which a retry may succeed (OVERLOADED, UNAVAILABLE).
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.violations = violations
        self.retry_after = retry_after

    @classmethod
    def field(cls, field: str, message: str) -> MultigrainError:
        """An INVALID_FIELD error of one field."""
        violation = FieldViolation(field, message)
        return cls(ErrorKind.INVALID_FIELD, f"{field}: {message}", violations=(violation,))


def shorten(items: Sequence[str], limit: int = 5) -> str:
    """Joins the first items of a list for a message: "a, b and 3 more"."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
