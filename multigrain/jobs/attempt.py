"""What the runner knows of each rank, and which of all failures was the cause."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from multigrain.events.records import (
    EvaluationRecord,
    JobState,
    LogRecord,
    LossRecord,
    ProgressRecord,
    Record,
    StateRecord,
)
from multigrain.jobs import failure
from multigrain.jobs.failure import Failure
from multigrain.jobs.ipc import (
    SCHEDULER_RANK,
    ChannelServer,
    Done,
    Emit,
    Exit,
    Failed,
    GuardHello,
    Hello,
    Message,
    Peer,
    Ready,
    Received,
    Stop,
    Terminate,
)
from multigrain.jobs.launchers import Launcher, LaunchPlan, ProcessPlan, RankCommand
from multigrain.jobs.limits import RunnerLimits, StopSignal
from multigrain.jobs.rank import CHANNEL_VARIABLE, TOKEN_VARIABLE
from multigrain.memory import count_oom_kills
from multigrain.processes import child_setup, end_all, job_environment
from multigrain.specs.base import DeviceSpec

LEFT_WELL = Exit(0)

MIN_STALL_SECONDS = 1.0
"""Below it a worker could not prove that it lives: signs of life are 0.25 s apart."""

_STEP_RECORDS = LossRecord | EvaluationRecord | ProgressRecord
"""What a worker tells once its graphs are compiled."""


@dataclass
class Rank:
    """A worker (or the scheduler) as it has made itself known.

    Attributes:
        worker: its connection, while there is one.
        ready: it has joined the cluster.
        heard: when it last said something, by the monotonic clock.
        done: its work returned.
        failed: its work raised.
        stepped: it has told of a step, an image or a figure.
        exit: how its process ended, as its guard says.
        failed_at: when the first of ``failed`` and ``exit`` came; 0 if none has.
    """

    worker: Peer | None = None
    ready: bool = False
    heard: float = 0.0
    stepped: bool = False
    done: Done | None = None
    failed: Failed | None = None
    exit: Exit | None = None
    failed_at: float = 0.0

    def hear(self, message: Message | None) -> None:
        """Notes what the worker says; None: its connection has ended."""
        self.heard = time.monotonic()
        match message:
            case Ready():
                self.ready = True
            case Emit(record):
                self.stepped = self.stepped or isinstance(record, _STEP_RECORDS)
            case Done():
                self.done = message
            case Failed():
                self.failed = message
                self.failed_at = self.failed_at or self.heard
            case None:
                self.worker = None

    def hear_guard(self, message: Message | None) -> None:
        """Notes what the guard says; None: its connection has ended."""
        if isinstance(message, Exit):
            self.exit = message
        elif message is None and self.exit is None:
            # A guard tells of every other end: only SIGKILL leaves it no time.
            self.exit = Exit(128 + signal.SIGKILL, signal.SIGKILL)
        if self.exit and not self.failed_at:
            self.failed_at = time.monotonic()

    @property
    def stopped(self) -> bool:
        """Whether a signal (SIGSTOP, or a debugger) holds its process."""
        if self.worker is None or self.worker.hello is None:
            return False
        try:
            status = psutil.Process(self.worker.hello.pid).status()
        except psutil.Error:
            return False
        return status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class Ranks:
    """The workers of an attempt and its scheduler.

    Args:
        world: number of workers.
        devices: their time limits.
        plan: their logs.
    """

    def __init__(self, world: int, devices: DeviceSpec, plan: LaunchPlan) -> None:
        self.workers = {number: Rank() for number in range(world)}
        self.scheduler = Rank()
        self._devices = devices
        self._plan = plan
        self._oom_kills = count_oom_kills()

    def get(self, number: int) -> Rank | None:
        return self.scheduler if number == SCHEDULER_RANK else self.workers.get(number)

    @property
    def all_ready(self) -> bool:
        return all(rank.ready for rank in self.workers.values())

    @property
    def all_done(self) -> bool:
        return all(rank.done for rank in self.workers.values())

    @property
    def all_left(self) -> bool:
        """No process of a worker that has done its work is left."""
        return all(rank.exit or not rank.done for rank in self.workers.values())

    def find_failure(self, settle_seconds: float) -> Failure | None:
        """The cause among all failures: peers of a dead worker fail too, and may say so first.

        None if there is no failure, or the first is younger than ``settle_seconds``.
        """
        failed = {
            number: rank
            for number, rank in self.workers.items()
            if rank.failed_at and not rank.done
        }
        if self.scheduler.exit not in (None, LEFT_WELL):
            failed[SCHEDULER_RANK] = self.scheduler
        if not failed:
            return None
        ordered = sorted(failed.items(), key=lambda item: item[1].failed_at)
        if time.monotonic() - ordered[0][1].failed_at < settle_seconds:
            return None
        for number, rank in ordered:
            if rank.failed and rank.failed.kind:
                return failure.work_failed(number, rank.failed, self._log(number))
        for number, rank in ordered:
            if rank.exit and rank.exit.signal is not None and number != SCHEDULER_RANK:
                killer = count_oom_kills() > self._oom_kills
                return failure.worker_died(number, rank.exit, self._log(number), oom_killer=killer)
        number, rank = ordered[0]
        if rank.failed:
            return failure.work_failed(number, rank.failed, self._log(number))
        return failure.worker_died(number, rank.exit or LEFT_WELL, self._log(number))

    def find_late(self, launched: float) -> Failure | None:
        """CLUSTER_TIMEOUT, if a worker is not ready that should be by now."""
        seconds = self._devices.cluster_timeout_seconds
        if time.monotonic() - launched <= seconds:
            return None
        missing = [number for number, rank in self.workers.items() if not rank.ready]
        return failure.cluster_timeout(missing, len(self.workers), seconds, self._log(missing[0]))

    def find_silent(self) -> Failure | None:
        """STALLED, if a worker has said nothing for too long.

        Its peers wait for it in a collective operation and are silent as well: the one whose
        process is held is named, or else the one silent for longest.
        """
        limit = self._silence_limit
        now = time.monotonic()
        silent = [
            (not rank.stopped, rank.heard, number)
            for number, rank in self.workers.items()
            if limit and not rank.done and now - rank.heard > limit
        ]
        if not silent:
            return None
        running, heard, number = min(silent)
        return failure.stalled(
            number, now - heard, self._log(number), held=not running, begun=self._begun
        )

    @property
    def _begun(self) -> bool:
        # Rank 0 tells of steps, which all take together.
        return any(rank.stepped for rank in self.workers.values())

    @property
    def _silence_limit(self) -> float:
        """Seconds, 0 for none: more before the first step, for which graphs are compiled."""
        stall, first = self._devices.stall_timeout_seconds, self._devices.first_step_timeout_seconds
        if not stall or (not self._begun and not first):
            return 0.0
        return max(stall if self._begun else max(stall, first), MIN_STALL_SECONDS)

    def _log(self, number: int) -> Path | None:
        if number == SCHEDULER_RANK:
            return self._plan.scheduler_log
        return self._plan.worker_logs[number]


# MERGED: One attempt at a job: starts its processes, listens to them, and leaves none behind.


log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_HELD_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Finished:
    """The work ended as its workers say, or was ended because a stop was asked for."""

    state: JobState
    message: str = ""


AttemptEnd = Finished | Failure


@dataclass(frozen=True)
class Attempt:
    """What is to be run.

    Attributes:
        command: what to start for each rank.
        launcher: how.
        job_id: of the job.
        logs: folder for the logs of this attempt.
        limits: of the runner.
        stop: whether somebody wants the job to end.
        record: stores a record of this attempt.
    """

    command: RankCommand
    launcher: Launcher
    job_id: str
    logs: Path
    limits: RunnerLimits
    stop: StopSignal
    record: Callable[[Record], None]

    def run(self) -> AttemptEnd:
        """Returns when the attempt has ended and no process of it is left.

        Raises:
            MultigrainError: if the devices cannot be launched in this way.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        for last_try in (False,) * (self.limits.port_attempts - 1) + (True,):
            plan = self.launcher.plan(self.command, self.logs)
            with closing(ChannelServer(self.command.folder)) as server:
                launch = _Launch(self, plan, server)
                end = launch.run()
            again = isinstance(end, Failure) and not launch.running and plan.port_was_taken()
            if last_try or not again:
                break
            log.warning("the scheduler's port was taken by another process; trying another one")
        return end


class _Launch:
    """The processes of an attempt, from their start to the last one's end."""

    def __init__(self, attempt: Attempt, plan: LaunchPlan, server: ChannelServer) -> None:
        self._attempt = attempt
        self._plan = plan
        self._server = server
        self._ranks = Ranks(attempt.command.world, attempt.command.devices, plan)
        self._launched = time.monotonic()
        self._stopping_since: float | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._quiet = False
        self.running = False

    def run(self) -> AttemptEnd:
        try:
            signal.set_wakeup_fd(self._server.wakeup_fd)
            for process in self._plan.processes:
                self._processes.append(self._start(process))
            end: AttemptEnd | None = None
            while end is None:
                began = time.monotonic()
                self._listen()
                # Held up itself (by a full disk, say), it must hear what was said meanwhile before
                # it calls anybody silent or dead.
                if time.monotonic() - began < _HELD_UP_SECONDS:
                    end = self._judge()
            if isinstance(end, Finished):
                self._let_workers_leave()
            return end
        finally:
            signal.set_wakeup_fd(-1)
            self._end_processes()

    def _start(self, plan: ProcessPlan) -> subprocess.Popen[bytes]:
        environment = {
            **plan.environment_in(os.environ),
            **job_environment(self._attempt.job_id, self._attempt.command.folder),
            CHANNEL_VARIABLE: self._server.address,
            TOKEN_VARIABLE: self._server.token,
        }
        with plan.log.open("wb") as output:
            return subprocess.Popen(
                plan.command,
                env=environment,
                cwd=self._attempt.logs,  # where MindSpore leaves files of its own
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=child_setup(os.getpid()),
            )

    # What comes in.

    def _listen(self) -> None:
        messages = self._server.wait(_TICK_SECONDS)
        self._quiet = not messages
        for received in messages:
            hello = received.peer.hello
            rank = self._ranks.get(hello.rank) if hello else None
            if rank is None:
                log.warning("somebody speaks for a rank that there is not: %s", hello)
            elif isinstance(hello, GuardHello):
                rank.hear_guard(received.message)
                if isinstance(received.message, Terminate):
                    log.info("the guard of rank %d got SIGTERM", hello.rank)
                    self._attempt.stop.request()
            else:
                self._hear_worker(rank, received)

    def _hear_worker(self, rank: Rank, received: Received) -> None:
        message = received.message
        rank.hear(message)
        if isinstance(message, Hello):
            rank.worker = received.peer
            if self._stopping_since is not None:
                received.peer.send(Stop())
        elif isinstance(message, Emit):
            if isinstance(message.record, StateRecord):
                log.warning("a worker sent a state, which is the runner's to decide")
            else:
                self._attempt.record(message.record)
        if not self.running and self._ranks.all_ready:
            self.running = True
            world = self._attempt.command.world
            text = "1 worker is running" if world == 1 else f"{world} workers are running"
            self._attempt.record(StateRecord(JobState.RUNNING, text))

    # What it means.

    def _judge(self) -> AttemptEnd | None:
        """The end of the attempt, if it has come."""
        if self._ranks.all_done:
            return self._say_finished()
        if self._attempt.stop.requested and self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self._attempt.record(StateRecord(JobState.STOPPING, self._attempt.stop.reason))
            if not self.running:
                number = self._attempt.command.attempt
                message = f"cancelled before attempt {number} began its work"
                return Finished(JobState.CANCELLED, message)
            for rank in self._ranks.workers.values():
                if rank.worker:
                    rank.worker.send(Stop())
        found = (
            self._ranks.find_failure(self._attempt.limits.settle_seconds)
            or self._find_dead_launcher()
            or (
                self._ranks.find_silent() if self.running else self._ranks.find_late(self._launched)
            )
        )
        return found if self._stopping_since is None else self._judge_stopping(found)

    def _judge_stopping(self, found: Failure | None) -> AttemptEnd | None:
        """Whoever cancels a job wants no further attempt, but to know if saving failed."""
        if found is not None and not found.retried:
            return found
        if found is not None:
            return Finished(
                JobState.CANCELLED,
                f"cancelled, but not in order: {found.error.message}; "
                "checkpoints written before are kept",
            )
        grace = self._attempt.limits.stop_grace_seconds
        if time.monotonic() - (self._stopping_since or 0.0) <= grace:
            return None
        return Finished(
            JobState.CANCELLED,
            f"the workers did not end in order within {grace:g} s and were killed; "
            "checkpoints written before are kept",
        )

    def _say_finished(self) -> AttemptEnd:
        done = {number: rank.done for number, rank in self._ranks.workers.items() if rank.done}
        stopped = [number for number, outcome in done.items() if outcome.stopped]
        if not stopped:
            return Finished(JobState.SUCCEEDED, done[0].message)
        if self._stopping_since is not None:
            return Finished(JobState.CANCELLED, done[0].message)
        unasked = Failed("", "the work stopped though nobody asked for it")
        return failure.work_failed(stopped[0], unasked, self._plan.worker_logs[stopped[0]])

    def _find_dead_launcher(self) -> Failure | None:
        """msrun ends by itself after a worker has; here, before any has. Workers end with it, so
        that there is nothing more to hear once all they said has been heard."""
        if not self._quiet or any(rank.exit for rank in self._ranks.workers.values()):
            return None
        for process, plan in zip(self._processes, self._plan.processes, strict=True):
            code = process.poll()
            if code is not None:
                return failure.launcher_ended(code, plan.log)
        return None

    # The end.

    def _let_workers_leave(self) -> None:
        """Waits for workers that have done their work to close what they hold (the cluster)."""
        deadline = time.monotonic() + self._attempt.limits.leave_seconds
        while not self._ranks.all_left and time.monotonic() < deadline:
            self._listen()
        for number, rank in self._ranks.workers.items():
            if rank.done and rank.exit != LEFT_WELL:
                log.warning("rank %d did its work, but did not leave well: %s", number, rank.exit)

    def _end_processes(self) -> None:
        left = end_all(self._attempt.command.folder)
        for process in self._processes:
            process.poll()
        if left:
            self._attempt.record(LogRecord("ERROR", f"processes that cannot be ended: {left}"))
