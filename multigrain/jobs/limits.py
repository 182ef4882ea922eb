"""How long a runner waits for what, and whether somebody wants it to end."""

from __future__ import annotations

import errno
from dataclasses import dataclass

EXIT_NO_ROOM = 73
"""Exit code of a runner that the disk had no room for (EX_CANTCREAT of sysexits.h)."""


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a full disk or a quota that is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


@dataclass(frozen=True)
class RunnerLimits:
    """How long a runner waits for what, in seconds, and how often it tries again.

    Attributes:
        stop_grace_seconds: for workers to save and return after a stop was asked for.
        leave_seconds: for workers to end after their work is done.
        settle_seconds: after a first sign of failure, for its cause to arrive as well.
        restart_delay_seconds: before the next attempt.
        storage_patience_seconds: for a disk that fails to work again, before the runner gives up.
            (For room on a full one it waits as long as it takes, or until the job is to end.)
        storage_retry_seconds: between two tries at such a disk.
        port_attempts: ports tried for the scheduler within one attempt.
        restarts: of evaluation and export; training has ``max_restarts``.
    """

    stop_grace_seconds: float = 120.0
    leave_seconds: float = 15.0
    settle_seconds: float = 0.5
    restart_delay_seconds: float = 1.0
    storage_patience_seconds: float = 600.0
    storage_retry_seconds: float = 1.0
    port_attempts: int = 3
    restarts: int = 1


class StopSignal:
    """Set once, by a signal handler or by a guard that got SIGTERM; never taken back."""

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""

    def request(self, reason: str = "asked to stop: saving, then ending") -> None:
        if not self.requested:
            self.requested = True
            self.reason = reason
