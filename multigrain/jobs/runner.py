"""``python -m multigrain.jobs.runner FOLDER``: runs a job to its end, with restarts.

The daemon starts the runner in a session of its own, and it outlives the daemon. While it runs it
is the only writer of the job's event log. All its state is in the job's folder: if it is killed
and started again, it continues with the next attempt. SIGTERM stops the job cleanly.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventWriter, LockHeldError, read_events
from multigrain.events.records import (
    CheckpointRecord,
    JobError,
    JobState,
    LogRecord,
    Record,
    StateRecord,
)
from multigrain.jobs.attempt import Attempt, Finished
from multigrain.jobs.failure import Failure, memory_advice, runner_lost
from multigrain.jobs.hub_weights import fetch_weights
from multigrain.jobs.ipc import remove_channels
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest
from multigrain.jobs.launchers import (
    Launcher,
    RankCommand,
    choose_launcher,
    world_of,
)
from multigrain.jobs.limits import EXIT_DISK_FULL, RunnerLimits, StopSignal, is_disk_full
from multigrain.jobs.runner_identity import RunnerIdentity
from multigrain.processes import adopt_orphans, end_all, keep_files_private
from multigrain.streams import reserve_descriptors

log = logging.getLogger(__name__)

_STATE_MARK = b'"state":{"state":'


@dataclass(frozen=True)
class History:
    """A job's state and attempts according to its event log.

    Attributes:
        state: the latest; None if the log has none.
        attempt: number of the latest attempt; 0 if there was none.
        started: attempts since the job was last queued (submitted or resumed).
    """

    state: JobState | None = None
    attempt: int = 0
    started: int = 0

    @property
    def restarts(self) -> int:
        """Restarts used since the job was last queued."""
        return max(0, self.started - 1)

    @property
    def finished(self) -> bool:
        """There is nothing to run."""
        return self.state is None or self.state.terminal

    @property
    def lost(self) -> bool:
        """The latest attempt was started, and its end was not recorded."""
        return self.state is not None and not self.state.terminal and self.started > 0

    @classmethod
    def read(cls, events: Path) -> History:
        """Reads an event log.

        Raises:
            MultigrainError: STORAGE, if it is damaged.
        """
        state: JobState | None = None
        attempt = 0
        attempts: set[int] = set()
        # Most lines of a long log are losses, which are not decoded.
        for event in read_events(events, keep_line=lambda line: _STATE_MARK in line):
            if not isinstance(event.record, StateRecord):
                continue
            state = event.record.state
            attempt = max(attempt, event.attempt)
            if state is JobState.QUEUED:
                attempts = set()
            elif state is JobState.STARTING:
                attempts.add(event.attempt)
        return cls(state, attempt, len(attempts))


class Runner:
    """Runs the attempts of one job.

    Args:
        folder: the job's.
        writer: of its event log.
        limits: timeouts and retries.
        stop: set when the job should stop.
        choose: returns the launcher of a job.
    """

    def __init__(
        self,
        folder: JobFolder,
        writer: EventWriter,
        limits: RunnerLimits,
        stop: StopSignal,
        choose: Callable[[JobRequest], Launcher] = choose_launcher,
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._limits = limits
        self._stop = stop
        self._choose_launcher = choose
        self._attempt = 0
        self._state = JobState.QUEUED
        # The last attempt ran out of memory, and no checkpoint was written since.
        self._last_attempt_oom = False

    def run(self) -> None:
        """Runs attempts until the job has ended and its terminal state is recorded.

        Raises:
            MultigrainError: STORAGE, if the event log is damaged or cannot be written.
        """
        history = History.read(self._folder.events)
        if history.finished:
            log.info("nothing to do: state=%s", history.state)
            return
        self._attempt = history.attempt
        self._state = history.state or JobState.QUEUED
        try:
            self._run_attempts(history)
        except MultigrainError as error:
            if error.kind is ErrorKind.STORAGE:
                raise
            field = error.violations[0].field if error.violations else ""
            self._fail(Failure(JobError(error.kind.name, error.message, field=field)))
        except Exception:
            log.exception("runner failed")
            message = "internal error of the job's runner; see its log, workers/runner.log"
            self._fail(Failure(JobError(ErrorKind.INTERNAL.name, message)))

    def _run_attempts(self, history: History) -> None:
        request = JobRequest.load(self._folder.spec)
        allowed = request.training.max_restarts if request.training else self._limits.restarts
        restarts = history.restarts
        failed: Failure | None = None
        if history.lost:
            # Its workers exit by themselves, which may take a moment on a busy machine.
            end_all(self._folder.path)
            remove_channels(self._folder.path)
            failed = runner_lost(history.attempt)
            if history.state is JobState.STOPPING:
                message = f"canceled after an unclean shutdown: {failed.error.message}"
                self.store(StateRecord(JobState.CANCELLED, message))
                return
        if not history.started and request.hub_weights and not self._stop.requested:
            self.store(LogRecord("INFO", f"fetching the weights {request.hub_weights}"))
            missing = fetch_weights(request, self._stop)
            if missing is not None:
                self._fail(missing)
                return
        while True:
            if failed is not None:
                no_restart = self._reason_against_restart(failed, restarts, allowed)
                if no_restart is not None:
                    self._fail(failed, no_restart)
                    return
                self._last_attempt_oom = failed.out_of_memory
                restarts += 1
                self._report_restart(failed, restarts, allowed)
                self._sleep(self._limits.restart_delay_seconds)
            if self._stop.requested:
                message = f"canceled before attempt {self._attempt + 1} started to work"
                self.store(StateRecord(JobState.CANCELLED, message))
                return
            self._attempt += 1
            self.store(StateRecord(JobState.STARTING, f"starting attempt {self._attempt}"))
            end = self._make_attempt(request).run()
            if isinstance(end, Finished):
                code = 0 if end.state is JobState.SUCCEEDED else None
                self.store(StateRecord(end.state, end.message, exit_code=code))
                return
            failed = end

    def _make_attempt(self, request: JobRequest) -> Attempt:
        return Attempt(
            command=RankCommand(
                folder=self._folder.path,
                attempt=self._attempt,
                world=world_of(request),
                devices=request.spec.devices,
            ),
            launcher=self._choose_launcher(request),
            job_id=request.job_id,
            logs=self._folder.logs / f"attempt-{self._attempt}",
            limits=self._limits,
            stop=self._stop,
            store=self.store,
            memory_advice=memory_advice(request),
            saves=request.training is not None,
        )

    def _report_restart(self, failed: Failure, restarts: int, allowed: int) -> None:
        """Records why there is another attempt, as a log record and as a message of the state."""
        message = (
            f"attempt {self._attempt} failed: {failed.error.message}. "
            f"Restarting from the latest checkpoint (restart {restarts} of {allowed})"
        )
        self.store(LogRecord("ERROR", message))
        self.store(StateRecord(self._state, message, failed.error, failed.exit_code))

    def _reason_against_restart(self, failed: Failure, restarts: int, allowed: int) -> str | None:
        """Why there is no further attempt, to append to the error; None if there is one.

        An attempt that ran out of memory is retried, because another program may have used the
        memory. If it happens twice in a row without a checkpoint in between, the job itself needs
        too much.
        """
        if not failed.retryable:
            return ""
        if restarts >= allowed:
            return f" (restarted {restarts} times, max_restarts)" if restarts else ""
        if failed.out_of_memory and self._last_attempt_oom:
            return " (for the second time in a row, without a checkpoint in between)"
        return None

    def _fail(self, failed: Failure, suffix: str = "") -> None:
        message = failed.error.message + suffix
        self.store(StateRecord(JobState.FAILED, message, failed.error, failed.exit_code))

    def store(self, record: Record) -> None:
        """Writes a record to the event log. Waits while the disk is full: no record is lost.

        Raises:
            MultigrainError: STORAGE, if the disk has errors for too long.
        """
        if isinstance(record, StateRecord):
            self._state = record.state
        elif isinstance(record, CheckpointRecord):
            self._last_attempt_oom = False
        began = time.monotonic()
        waited = reported = False
        while True:
            before = self._writer.last_seq
            try:
                if waited and not reported:
                    seconds = time.monotonic() - began
                    message = f"event log was not writable for {seconds:.0f} s; the job was blocked"
                    before = self._writer.append(LogRecord("WARNING", message), self._attempt)
                    reported = True
                self._writer.append(record, self._attempt)
                return
            except MultigrainError as error:
                if self._writer.last_seq > before:
                    # Readers may have seen the event: writing it again would duplicate it.
                    log.error("fsync failed; event may not be durable: error=%s", error.message)
                    return
                if time.monotonic() >= began + self._storage_timeout(error):
                    raise
                if not waited:
                    log.error("event log not writable: error=%s", error.message)
                waited = True
            time.sleep(self._limits.storage_retry_seconds)

    def _storage_timeout(self, error: MultigrainError) -> float:
        """Seconds that a record may wait. A full disk needs an operator, who may take long."""
        if not is_disk_full(error):
            return self._limits.storage_timeout_seconds
        return self._limits.stop_grace_seconds if self._stop.requested else math.inf

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stop.requested and time.monotonic() < deadline:
            time.sleep(0.02)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    limits = RunnerLimits()
    parser = argparse.ArgumentParser(prog="multigrain.jobs.runner", description=__doc__)
    parser.add_argument("folder", type=Path, help="the job's folder, with spec.json")
    parser.add_argument(
        "--stop-grace",
        type=float,
        default=limits.stop_grace_seconds,
        metavar="SECONDS",
        help="time for workers to save a checkpoint after SIGTERM (default: %(default)g)",
    )
    return parser


def main(
    arguments: list[str] | None = None,
    choose: Callable[[JobRequest], Launcher] = choose_launcher,
) -> int:
    """Runs a job.

    Args:
        arguments: of the command line; None = this process's.
        choose: returns the launcher of a job.

    Returns:
        The exit code.
    """
    options = parser().parse_args(arguments)
    stop = StopSignal()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.request()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # interrupts a wait

    folder = JobFolder(options.folder.resolve())
    folder.logs.mkdir(exist_ok=True)
    logging.basicConfig(
        filename=folder.logs / "runner.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    try:
        writer = EventWriter(folder.events, folder.job_id)
    except LockHeldError:
        log.info("job has another runner")
        return 0
    with writer:
        try:
            RunnerIdentity.of_this_process().save(folder.runner)
        except OSError as error:
            log.error("cannot write runner.json: error=%s", error)
            return EXIT_DISK_FULL if is_disk_full(error) else 1
        adopt_orphans()
        limits = RunnerLimits(stop_grace_seconds=options.stop_grace)
        runner = Runner(folder, writer, limits, stop, choose)
        try:
            runner.run()
        except MultigrainError as error:
            log.error("job cannot continue: error=%s", error.message)
            return EXIT_DISK_FULL if is_disk_full(error) else 1
    return 0


if __name__ == "__main__":
    reserve_descriptors()
    keep_files_private()
    sys.exit(main())
