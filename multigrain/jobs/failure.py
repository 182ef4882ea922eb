"""Error messages of failed attempts, which say what the user can do."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from multigrain.errors import ErrorKind
from multigrain.events.records import JobError
from multigrain.files import read_tail
from multigrain.jobs.ipc import SCHEDULER_RANK, Exit, Failed
from multigrain.jobs.job_request import JobRequest
from multigrain.machine import Memory
from multigrain.memory import is_out_of_memory
from multigrain.processes import describe_signal, explain_signal

LOG_TAIL_BYTES = 8192
_SEARCHED_BYTES = 16 * LOG_TAIL_BYTES
_MINDSPORE_WARNING = re.compile(rb"\[WARNING\] [A-Z_]+\(\d+")

RETRYABLE = frozenset(
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
"""Kinds of errors that another attempt may not have. All others would recur: wrong input, a missing
dataset, a non-finite loss."""

_TRAINING_ADVICE = (
    "use a smaller schedule.batch_size or model.image_size, fewer workers, or more memory"
)
MAX_LENGTH = 500
"""Characters of an exception's message."""

# MindSpore frames its messages: lines of dashes, a heading between two of them, the text, and last
# the stack of its own sources.
_DASHES = re.compile(r"^\s*-{4,}\s*$")
_HEADING = re.compile(r"^\s*- .*:\s*(\(.*\))?\s*$")
_STACK = re.compile(r"^\s*- (C\+\+ Call Stack|The Traceback)")

_SIGNAL_ADVICE: dict[int, str] = {
    signal.SIGSEGV: "; the log has the Python stack trace",
    signal.SIGABRT: "; the log has the reason",
    signal.SIGTERM: "; to stop a job cleanly, cancel it",
}


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        error: the error that the job reports.
        out_of_memory: the host or a device is known to have run out of memory.
    """

    error: JobError
    out_of_memory: bool = False

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed."""
        return self.error.kind in RETRYABLE

    @property
    def exit_code(self) -> int | None:
        """The exit code that a shell reports: 128 + the number of the signal."""
        if self.error.signal is not None:
            return 128 + self.error.signal
        return self.error.exit_code


def memory_advice(request: JobRequest) -> str:
    """What a user can change if memory ran out, by the fields of the job's kind."""
    if request.evaluation is not None:
        fewer = ", fewer workers" if request.evaluation.devices.count > 1 else ""
        return f"use a smaller batch_size or resolution{fewer}, or more memory"
    if request.export is not None:
        spec = request.export
        fields = ["resolutions" if spec.resolutions else "resolution"]
        if spec.whitening_path:
            fields.append("whitening_images")
        if spec.int8_path or (request.train_path and spec.int8 != "off"):
            fields.append("int8_images")
        return f"lower {' or '.join(fields)}, or use more memory"
    return _TRAINING_ADVICE


def worker_died(
    rank: int,
    exit: Exit,
    log: Path | None,
    *,
    oom_killer: bool | None = None,
    memory: Memory | None = None,
    advice: str = _TRAINING_ADVICE,
) -> Failure:
    """A worker or the scheduler exited without reporting a result.

    Args:
        rank: of the process.
        exit: its exit code or signal.
        log: its output.
        oom_killer: whether the kernel's OOM killer has ended a process during the attempt; None =
            unknown.
        memory: what the worker may use.
        advice: what to do if memory ran out; see ``memory_advice``.
    """
    who = _name(rank)
    out_of_memory = bool(oom_killer) and exit.signal == signal.SIGKILL
    if out_of_memory:
        allowed = f" ({memory.describe_limit()})" if memory is not None else ""
        message = (
            f"{who} was killed by SIGKILL (signal 9), by the kernel: the machine or its container "
            f"ran out of memory{allowed}; {advice}"
        )
    elif exit.signal is not None:
        hint = _explain(exit.signal, oom_killer, advice) or "see the tail of its log"
        message = f"{who} was killed by {describe_signal(exit.signal)}: {hint}"
    elif exit.code == 0:
        message = f"{who} exited before its work was done; see the tail of its log"
    else:
        message = f"{who} exited with code {exit.code}; see the tail of its log"
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
    """A worker raised an exception: an error that the user can fix, or a defect."""
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
                f"the cluster of {world} did not form within {seconds:g} s: rank {ranks} did not "
                "join; see the tail of its log, or raise spec.devices.cluster_timeout_seconds"
            ),
            rank=missing[0],
            log_tail=log_tail(log),
        )
    )


def stalled(
    rank: int, seconds: float, log: Path | None, *, suspended: bool, stepped: bool
) -> Failure:
    """A worker is alive but sends nothing.

    Args:
        rank: of the worker.
        seconds: since its last message.
        log: its output.
        suspended: whether its process is stopped by a signal.
        stepped: whether the attempt has reported a step.
    """
    key = "stall_timeout_seconds" if stepped else "first_step_timeout_seconds"
    why = (
        "its process is suspended (by SIGSTOP, for example)"
        if suspended
        else "it hangs or is too slow"
    )
    what = "a step" if stepped else "the first step, which includes compilation,"
    return Failure(
        JobError(
            kind=ErrorKind.STALLED.name,
            message=(
                f"rank {rank} made no progress for {seconds:.0f} s and was killed: {why}; if "
                f"{what} can take that long, raise spec.devices.{key}"
            ),
            rank=rank,
            log_tail=log_tail(log),
        )
    )


def process_ended(code: int, log: Path) -> Failure:
    """A process exited before it had reported anything, such as its start."""
    how = f"was killed by {describe_signal(-code)}" if code < 0 else f"exited with code {code}"
    return Failure(
        JobError(
            kind=ErrorKind.WORKER_DIED.name,
            message=f"a process of the job {how} before it started to work; see its log",
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            log_tail=log_tail(log),
        )
    )


def runner_lost(attempt: int) -> Failure:
    """The runner of an attempt was killed, and its workers with it."""
    return Failure(
        JobError(
            kind=ErrorKind.RUNNER_LOST.name,
            message=(
                f"the runner of attempt {attempt} was killed, or the machine crashed; "
                "resume the job to continue from its latest checkpoint"
            ),
        )
    )


def log_tail(path: Path | None) -> str:
    """The last complete lines of a log, at most LOG_TAIL_BYTES; "" if there is no log.

    MindSpore's warnings (dozens while a cluster forms) are left out unless there is nothing else:
    they would hide the lines that say why the process exited.
    """
    if path is None:
        return ""
    try:
        data, start = read_tail(path, _SEARCHED_BYTES)
    except OSError:
        return ""
    lines = data.splitlines(keepends=True)
    kept = b"".join(line for line in lines if not _MINDSPORE_WARNING.match(line))
    cut = start > 0
    if kept.strip():
        data = kept
    if len(data) > LOG_TAIL_BYTES:
        data, cut = data[-LOG_TAIL_BYTES:], True
    if cut and b"\n" in data[:-1]:
        data = data[data.index(b"\n") + 1 :]
    # "ignore": replacement characters would make the text longer than LOG_TAIL_BYTES.
    return data.decode(errors="ignore")


def _name(rank: int) -> str:
    return "the cluster's scheduler" if rank == SCHEDULER_RANK else f"rank {rank}"


def _explain(number: int, oom_killer: bool | None, advice: str) -> str:
    if number == signal.SIGKILL:
        if oom_killer is None:
            return f"usually because the machine ran out of memory; {advice}"
        return "from outside: the kernel has killed no process for lack of memory"
    return explain_signal(number) + _SIGNAL_ADVICE.get(number, "")


def describe_exception(error: Exception, advice: str = _TRAINING_ADVICE) -> str:
    """Type and message of an exception, and advice if memory ran out.

    Args:
        error: that ended the worker.
        advice: from ``memory_advice``.

    Returns:
        One line of at most ``MAX_LENGTH`` characters, and the advice.
    """
    text = _first_sentence(str(error))[:MAX_LENGTH]
    name = type(error).__name__
    described = f"{name}: {text}" if text else name
    return f"{described} ({advice})" if advice and is_out_of_memory(error) else described


def _first_sentence(message: str) -> str:
    for line in message.splitlines():
        if _STACK.match(line):
            break
        if line.strip() and not _DASHES.match(line) and not _HEADING.match(line):
            return line.strip()
    # Only headings: return the first.
    return next((line.strip(" -") for line in message.splitlines() if line.strip(" -")), "")
