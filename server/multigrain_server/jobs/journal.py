"""The few events that the daemon writes itself, where no runner lives to write them."""

from __future__ import annotations

from multigrain.events.lock import LockHeldError, is_locked
from multigrain.events.log import EventWriter
from multigrain.events.records import Record
from multigrain.jobs.folder import JobFolder


def append(folder: JobFolder, record: Record, attempt: int) -> bool:
    """Appends one event to a log that nobody writes. False if somebody does.

    Raises:
        MultigrainError: STORAGE.
    """
    # A look first: taking a held lock would wait for it, and the event loop with it.
    if is_locked(folder.events):
        return False
    try:
        with EventWriter(folder.events, folder.job_id) as writer:
            writer.append(record, attempt)
    except LockHeldError:
        return False
    return True


def runner_log_tail(folder: JobFolder, size: int = 4096) -> str:
    """The end of what the runner printed, in at most ``size`` bytes."""
    try:
        with (folder.logs / "runner.log").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
