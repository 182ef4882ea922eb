"""What the event log says of a job's attempts so far."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import time
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
from multigrain.jobs.failure import Failure, runner_lost
from multigrain.jobs.ipc import remove_channels
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest
from multigrain.jobs.launchers import (
    DirectLauncher,
    Launcher,
    RankCommand,
    choose_launcher,
    world_of,
)
from multigrain.jobs.limits import EXIT_NO_ROOM, RunnerLimits, StopSignal, no_room
from multigrain.jobs.runner_identity import RunnerIdentity
from multigrain.processes import adopt_orphans, end_all

_STATE_MARK = b'"state":{"state":'


@dataclass(frozen=True)
class History:
    """State of a job by its log.

    Attributes:
        state: the newest; None if the log holds none.
        attempt: number of the newest attempt, 0 if there was none.
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
        return self.state is None or self.state.terminal

    @property
    def lost(self) -> bool:
        """An attempt was begun and its end was not recorded."""
        return self.state is not None and not self.state.terminal and self.started > 0

    @classmethod
    def read(cls, events: Path) -> History:
        """
        Raises:
            MultigrainError: STORAGE, if the log is damaged.
        """
        state: JobState | None = None
        attempt = 0
        attempts: set[int] = set()
        # Losses are nearly all of a long log: their lines are not decoded.
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


# MERGED: ``python -m multigrain.jobs.runner <job-folder>``: runs a job to its end, through
# restarts. The daemon starts it in a session of its own, and it outlives the daemon. It is the
# only writer of the job's event log while it lives, and knows nothing that is not in the job's
# folder: killed and started again, it goes on with the next attempt. SIGTERM ends the job in
# order.


log = logging.getLogger(__name__)


class Runner:
    """Args:
    folder: of the job.
    writer: its event log, locked.
    limits: how long to wait for what.
    stop: set when the job is to end.
    work: for tests: the function that workers call, "module:function".
    bare: for tests: no msrun, no MindSpore.
    """

    def __init__(
        self,
        folder: JobFolder,
        writer: EventWriter,
        limits: RunnerLimits,
        stop: StopSignal,
        *,
        work: str = "",
        bare: bool = False,
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._limits = limits
        self._stop = stop
        self._work = work
        self._bare = bare
        self._attempt = 0
        self._state = JobState.QUEUED
        # The newest attempt that ended did so for want of memory; no checkpoint came since.
        self._starved = False

    def run(self) -> None:
        """Runs attempts until the job has ended and its terminal state is recorded.

        Raises:
            MultigrainError: STORAGE, if the event log is damaged or its disk stays full.
        """
        history = History.read(self._folder.events)
        if history.finished:
            log.info("nothing to do: the job is %s", history.state)
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
            log.exception("a defect of the runner")
            message = "the job's runner hit a defect; its log, workers/runner.log, has the details"
            self._fail(Failure(JobError(ErrorKind.INTERNAL.name, message)))

    def _run_attempts(self, history: History) -> None:
        request = JobRequest.load(self._folder.spec)
        allowed = request.training.max_restarts if request.training else self._limits.restarts
        restarts = history.restarts
        failed: Failure | None = None
        if history.lost:
            # Its workers end by themselves, but a machine under load may need a moment.
            end_all(self._folder.path)
            remove_channels(self._folder.path)
            failed = runner_lost(history.attempt)
            if history.state is JobState.STOPPING:
                message = f"cancelled, but not in order: {failed.error.message}"
                self.store(StateRecord(JobState.CANCELLED, message))
                return
        while True:
            if failed is not None:
                why_not = self._why_not_again(failed, restarts, allowed)
                if why_not is not None:
                    self._fail(failed, why_not)
                    return
                self._starved = failed.out_of_memory
                restarts += 1
                self._tell_restart(failed, restarts, allowed)
                self._pause(self._limits.restart_delay_seconds)
            if self._stop.requested:
                message = f"cancelled before attempt {self._attempt + 1} began its work"
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
        launcher: Launcher = DirectLauncher() if self._bare else choose_launcher(request)
        return Attempt(
            command=RankCommand(
                folder=self._folder.path,
                attempt=self._attempt,
                world=world_of(request),
                devices=request.spec.devices,
                work=self._work,
                bare=self._bare,
            ),
            launcher=launcher,
            job_id=request.job_id,
            logs=self._folder.logs / f"attempt-{self._attempt}",
            limits=self._limits,
            stop=self._stop,
            record=self.store,
        )

    def _tell_restart(self, failed: Failure, restarts: int, allowed: int) -> None:
        """Says in the log, and with the state as it still is, why there is a next attempt."""
        message = (
            f"attempt {self._attempt} ended: {failed.error.message}. "
            f"Starting again from the last good checkpoint (restart {restarts} of {allowed})"
        )
        self.store(LogRecord("ERROR", message))
        self.store(StateRecord(self._state, message, failed.error, failed.exit_code))

    def _why_not_again(self, failed: Failure, restarts: int, allowed: int) -> str | None:
        """Why there is no further attempt, to stand behind the error; None if there is one.

        One that ran out of memory is made again, as another program may have had it; twice in a
        row, and without a checkpoint in between, it is the work itself that needs too much.
        """
        if not failed.retried:
            return ""
        if restarts >= allowed:
            return f" (restarted {restarts} times, max_restarts)" if restarts else ""
        if failed.out_of_memory and self._starved:
            return " (for the second time in a row, and without a checkpoint in between)"
        return None

    def _fail(self, failed: Failure, why_no_restart: str = "") -> None:
        message = failed.error.message + why_no_restart
        self.store(StateRecord(JobState.FAILED, message, failed.error, failed.exit_code))

    def store(self, record: Record) -> None:
        """Stores a record. While the disk is full everything waits: nothing is left out."""
        if isinstance(record, StateRecord):
            self._state = record.state
        elif isinstance(record, CheckpointRecord):
            self._starved = False
        began = time.monotonic()
        waited = told = False
        while True:
            before = self._writer.last_seq
            try:
                if waited and not told:
                    seconds = time.monotonic() - began
                    message = f"the event log could not be written for {seconds:.0f} s: all waited"
                    before = self._writer.append(LogRecord("WARNING", message), self._attempt)
                    told = True
                self._writer.append(record, self._attempt)
                return
            except MultigrainError as error:
                if self._writer.last_seq > before:
                    # It stands, and readers may have seen it: once more would be twice.
                    log.error("not known to be on the disk: %s", error.message)
                    return
                if time.monotonic() >= began + self._patience(error):
                    raise
                if not waited:
                    log.error("%s", error.message)
                waited = True
            time.sleep(self._limits.storage_retry_seconds)

    def _patience(self, error: MultigrainError) -> float:
        """Seconds that a record may wait; a full disk is emptied by somebody, in their time."""
        if not no_room(error):
            return self._limits.storage_patience_seconds
        return self._limits.stop_grace_seconds if self._stop.requested else math.inf

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stop.requested and time.monotonic() < deadline:
            time.sleep(0.02)


def parser() -> argparse.ArgumentParser:
    limits = RunnerLimits()
    parser = argparse.ArgumentParser(prog="multigrain.jobs.runner", description=__doc__)
    parser.add_argument("folder", type=Path, help="the job's folder, with spec.json")
    parser.add_argument(
        "--stop-grace",
        type=float,
        default=limits.stop_grace_seconds,
        metavar="SECONDS",
        help="for workers to save and return after SIGTERM (default: %(default)g)",
    )
    # For tests: another work function, and no MindSpore.
    parser.add_argument("--work", default="", metavar="MODULE:FUNCTION", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    stop = StopSignal()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.request()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that it ends a wait

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
        log.info("another runner has the job")
        return 0
    with writer:
        try:
            RunnerIdentity.of_this_process().save(folder.runner)
        except OSError as error:
            log.error("cannot say who it is: %s", error)
            return EXIT_NO_ROOM if no_room(error) else 1
        adopt_orphans()
        limits = RunnerLimits(stop_grace_seconds=options.stop_grace)
        runner = Runner(folder, writer, limits, stop, work=options.work, bare=options.bare)
        try:
            runner.run()
        except MultigrainError as error:
            log.error("the job cannot go on: %s", error.message)
            return EXIT_NO_ROOM if no_room(error) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
