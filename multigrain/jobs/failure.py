"""Why an attempt failed, said so that a person can act on it."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from multigrain.errors import ErrorKind
from multigrain.events.records import JobError
from multigrain.jobs.ipc import SCHEDULER_RANK, Exit, Failed
from multigrain.memory import is_out_of_memory

LOG_TAIL_BYTES = 8192
_LOOKED_AT_BYTES = 16 * LOG_TAIL_BYTES
_CHATTER = re.compile(rb"\[WARNING\] [A-Z_]+\(\d+")

RETRIED = frozenset(
    kind.name
    for kind in (
        ErrorKind.WORKER_DIED,
        ErrorKind.CLUSTER_TIMEOUT,
        ErrorKind.STALLED,
        ErrorKind.RUNNER_LOST,
        ErrorKind.UNAVAILABLE,
        ErrorKind.OVERLOADED,
    )
)
"""Kinds that another attempt may not meet again. Every other one would come back: wrong input,
a missing data set, a loss that is not finite."""

_MEMORY_ADVICE = "use a smaller batch_size, fewer workers or more memory"

_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: f"most often because the machine ran out of memory; {_MEMORY_ADVICE}",
    signal.SIGBUS: "most often because /dev/shm is full; give the machine or container more",
    signal.SIGSEGV: "a crash in native code; the log has the Python stack",
    signal.SIGABRT: "native code gave up; the log says why",
    signal.SIGTERM: "somebody ended this one process; cancel the job to end it in order",
}


@dataclass(frozen=True)
class Failure:
    """The end of an attempt that did not do its work.

    Attributes:
        error: what the job will say.
        out_of_memory: it is known that memory ran out, of the machine or of a device.
    """

    error: JobError
    out_of_memory: bool = False

    @property
    def retried(self) -> bool:
        return self.error.kind in RETRIED

    @property
    def exit_code(self) -> int | None:
        """As a shell would give it: 128 + the signal's number if one killed the worker."""
        if self.error.signal is not None:
            return 128 + self.error.signal
        return self.error.exit_code


def worker_died(rank: int, exit: Exit, log: Path | None, *, oom_killer: bool = False) -> Failure:
    """A worker, or the scheduler, ended without having said how its work ended.

    Args:
        rank: which.
        exit: how.
        log: its output.
        oom_killer: whether the kernel has killed for want of memory since the attempt began.
    """
    who = _name(rank)
    out_of_memory = oom_killer and exit.signal == signal.SIGKILL
    if out_of_memory:
        message = (
            f"{who} was killed by SIGKILL (signal 9), by the kernel: the memory of the machine, "
            f"or of its container, ran out; {_MEMORY_ADVICE}"
        )
    elif exit.signal is not None:
        hint = _SIGNAL_HINTS.get(exit.signal, "see the tail of its log")
        message = f"{who} was killed by {_signal_name(exit.signal)}: {hint}"
    elif exit.code == 0:
        message = f"{who} ended before its work was done; see the tail of its log"
    else:
        message = f"{who} ended with exit code {exit.code}; see the tail of its log"
    return Failure(
        JobError(
            kind=ErrorKind.WORKER_DIED.name,
            message=message,
            rank=rank if rank >= 0 else None,
            exit_code=None if exit.signal is not None else exit.code,
            signal=exit.signal,
            log_tail=log_tail(log),
        ),
        out_of_memory,
    )


def work_failed(rank: int, failed: Failed, log: Path | None) -> Failure:
    """A worker's work raised: an error that the user can act on, or a defect."""
    if failed.kind:
        return Failure(
            JobError(failed.kind, failed.message, field=failed.field, rank=rank, exit_code=1)
        )
    return Failure(
        JobError(
            kind=ErrorKind.WORKER_DIED.name,
            message=f"{_name(rank)} failed: {failed.message}; see the tail of its log",
            rank=rank,
            exit_code=1,
            log_tail=log_tail(log),
        ),
        failed.out_of_memory,
    )


def cluster_timeout(missing: list[int], world: int, seconds: float, log: Path | None) -> Failure:
    """Not every worker joined the cluster in time."""
    ranks = ", ".join(map(str, missing))
    return Failure(
        JobError(
            kind=ErrorKind.CLUSTER_TIMEOUT.name,
            message=(
                f"the cluster of {world} was not formed in {seconds:g} s: rank {ranks} did not "
                "join; see the tail of its log, or raise spec.devices.cluster_timeout_seconds"
            ),
            rank=missing[0],
            log_tail=log_tail(log),
        )
    )


def stalled(rank: int, seconds: float, log: Path | None, *, held: bool, begun: bool) -> Failure:
    """A worker lives but says nothing.

    Args:
        rank: which.
        seconds: for how long.
        log: its output.
        held: whether a signal holds its process.
        begun: whether the attempt had made a step.
    """
    key = "stall_timeout_seconds" if begun else "first_step_timeout_seconds"
    why = "its process is stopped by a signal, SIGSTOP say" if held else "it hangs, or is too slow"
    what = "a step" if begun else "the first step, with its compilation,"
    return Failure(
        JobError(
            kind=ErrorKind.STALLED.name,
            message=(
                f"rank {rank} made no progress for {seconds:.0f} s and was ended: {why}; if "
                f"{what} may take that long, raise spec.devices.{key}"
            ),
            rank=rank,
            log_tail=log_tail(log),
        )
    )


def launcher_ended(code: int, log: Path) -> Failure:
    """msrun ended before its workers had done their work."""
    how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return Failure(
        JobError(
            kind=ErrorKind.WORKER_DIED.name,
            message=f"the process that starts the workers {how}; see the tail of its log",
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            log_tail=log_tail(log),
        )
    )


def runner_lost(attempt: int) -> Failure:
    """The runner of an attempt died, and its workers with it."""
    return Failure(
        JobError(
            kind=ErrorKind.RUNNER_LOST.name,
            message=(
                f"the process that ran attempt {attempt} was killed, or the machine went down; "
                "resume the job to continue from its last checkpoint"
            ),
        )
    )


def log_tail(path: Path | None) -> str:
    """The last whole lines of a log, at most LOG_TAIL_BYTES of them; "" if there is none.

    MindSpore's own warnings (dozens while a cluster forms) are left out, unless there is nothing
    else: they hide the lines that say why the process ended.
    """
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - _LOOKED_AT_BYTES)
            file.seek(start)
            data = file.read(_LOOKED_AT_BYTES)
    except OSError:
        return ""
    lines = data.splitlines(keepends=True)
    kept = b"".join(line for line in lines if not _CHATTER.match(line))
    cut = start > 0
    if kept.strip():
        data = kept
    if len(data) > LOG_TAIL_BYTES:
        data, cut = data[-LOG_TAIL_BYTES:], True
    if cut and b"\n" in data[:-1]:
        data = data[data.index(b"\n") + 1 :]
    # "ignore": a replacement character would take more bytes than what it replaces.
    return data.decode(errors="ignore")


def _name(rank: int) -> str:
    return "the cluster's scheduler" if rank == SCHEDULER_RANK else f"rank {rank}"


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


# MERGED: What a worker's unforeseen error says, in one line that a person can act on.


MAX_LENGTH = 500

# MindSpore frames its messages: rules of dashes, a heading between two of them, then the text,
# and last a stack of its own sources.
_RULE = re.compile(r"^\s*-{4,}\s*$")
_HEADING = re.compile(r"^\s*- .*:\s*(\(.*\))?\s*$")
_STACK = re.compile(r"^\s*- (C\+\+ Call Stack|The Traceback)")
_ADVICE = "use a smaller schedule.batch_size or model.image_size, fewer workers, or more memory"


def describe_exception(error: Exception) -> str:
    """Type and message of an error.

    Returns:
        one line of at most ``MAX_LENGTH`` characters and a hint.
    """
    text = _first_sentence(str(error))[:MAX_LENGTH]
    name = type(error).__name__
    said = f"{name}: {text}" if text else name
    return f"{said} ({_ADVICE})" if is_out_of_memory(error) else said


def _first_sentence(message: str) -> str:
    for line in message.splitlines():
        if _STACK.match(line):
            break
        if line.strip() and not _RULE.match(line) and not _HEADING.match(line):
            return line.strip()
    # Nothing but headings: the first of them says more than nothing.
    return next((line.strip(" -") for line in message.splitlines() if line.strip(" -")), "")
