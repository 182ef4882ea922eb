"""Time limits of a runner, its stop signal, and how it reports a full disk."""

from __future__ import annotations

import errno
from dataclasses import dataclass

EXIT_DISK_FULL = 73
"""Exit code of a runner that could not write to a full disk (EX_CANTCREAT of sysexits.h)."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is a full disk or an exceeded quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


@dataclass(frozen=True)
class RunnerLimits:
    """Timeouts and retries of a runner.

    Attributes:
        stop_grace_seconds: for workers to save a checkpoint and return once a stop is requested.
        unsaved_stop_seconds: the same for a training job that has not done a step since its last
            checkpoint: it has nothing to save, and a compilation cannot be interrupted.
        exit_seconds: for workers to exit once their work is done.
        settle_seconds: between the first sign of a failure and the search for its cause, which may
            be reported later than its consequences.
        restart_delay_seconds: before the next attempt.
        storage_timeout_seconds: for a disk with errors to recover, before the runner exits. It
            waits for space on a full disk without a timeout, until the job is to stop.
        storage_retry_seconds: between two writes to such a disk.
        port_attempts: ports tried for the scheduler within one attempt.
        restarts: of an evaluation or export; a training has ``max_restarts``.
    """

    stop_grace_seconds: float = 120.0
    unsaved_stop_seconds: float = 5.0
    exit_seconds: float = 15.0
    settle_seconds: float = 0.5
    restart_delay_seconds: float = 1.0
    storage_timeout_seconds: float = 600.0
    storage_retry_seconds: float = 1.0
    port_attempts: int = 3
    restarts: int = 1


class StopSignal:
    """Set once, by a signal handler or for a guard that received SIGTERM; never cleared."""

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""

    def request(self, reason: str = "stop requested: saving a checkpoint and exiting") -> None:
        """Requests that the job stops; the first reason is kept."""
        if not self.requested:
            self.requested = True
            self.reason = reason
