"""One attempt at a job: starts its processes, follows them, and leaves none behind."""

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
from multigrain.files import open_to_write
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
from multigrain.memory import OomWatch
from multigrain.processes import child_environment, child_setup, end_all, job_environment
from multigrain.specs.base import DeviceSpec

log = logging.getLogger(__name__)

EXIT_OK = Exit(0)
"""The exit of a worker that is done."""

MIN_STALL_SECONDS = 1.0
"""Lower bound of the stall timeout: signs of life are 0.25 s apart."""

_STEP_RECORDS = LossRecord | EvaluationRecord | ProgressRecord
"""Records that a worker sends only once its graphs are compiled."""

_TICK_SECONDS = 0.25
_DELAY_SECONDS = 1.0


@dataclass
class Rank:
    """What a worker (or the scheduler) and its guard have reported.

    Attributes:
        worker: the worker's connection, while it is open.
        ready: it has joined the cluster.
        last_message: when its last message arrived, by the monotonic clock.
        stepped: it has reported a step, an evaluation or progress.
        done: it finished its work.
        failed: it raised an exception.
        exit: how its process exited, from its guard.
        failed_at: when the first of ``failed`` and ``exit`` arrived; 0 if none has.
    """

    worker: Peer | None = None
    ready: bool = False
    last_message: float = 0.0
    stepped: bool = False
    done: Done | None = None
    failed: Failed | None = None
    exit: Exit | None = None
    failed_at: float = 0.0

    def on_message(self, message: Message | None) -> None:
        """Handles a message of the worker; None: its connection was closed."""
        self.last_message = time.monotonic()
        match message:
            case Ready():
                self.ready = True
            case Emit(record):
                self.stepped = self.stepped or isinstance(record, _STEP_RECORDS)
            case Done():
                self.done = message
            case Failed():
                self.failed = message
                self.failed_at = self.failed_at or self.last_message
            case None:
                self.worker = None

    def on_guard_message(self, message: Message | None) -> None:
        """Handles a message of the guard; None: its connection was closed."""
        if isinstance(message, Exit):
            self.exit = message
        elif message is None and self.exit is None:
            # A guard reports every exit, except when it is killed itself.
            self.exit = Exit(128 + signal.SIGKILL, signal.SIGKILL)
        if self.exit and not self.failed_at:
            self.failed_at = time.monotonic()

    @property
    def suspended(self) -> bool:
        """Whether its process is stopped by SIGSTOP or a debugger."""
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
        devices: has the timeouts.
        plan: has the logs.
        memory_advice: what to do if memory ran out.
    """

    def __init__(
        self, world: int, devices: DeviceSpec, plan: LaunchPlan, memory_advice: str
    ) -> None:
        self.workers = {number: Rank() for number in range(world)}
        self.scheduler = Rank()
        self._devices = devices
        self._plan = plan
        self._memory_advice = memory_advice
        self._oom_watch = OomWatch()

    def get(self, number: int) -> Rank | None:
        """The worker or scheduler with a number; None if there is none."""
        return self.scheduler if number == SCHEDULER_RANK else self.workers.get(number)

    @property
    def every(self) -> list[Rank]:
        """All workers, and the scheduler."""
        return [*self.workers.values(), self.scheduler]

    @property
    def all_ready(self) -> bool:
        """Every worker has joined the cluster."""
        return all(rank.ready for rank in self.workers.values())

    @property
    def all_done(self) -> bool:
        """Every worker has finished its work."""
        return all(rank.done for rank in self.workers.values())

    @property
    def all_exited(self) -> bool:
        """Every worker that has finished its work has exited."""
        return all(rank.exit or not rank.done for rank in self.workers.values())

    def find_failure(self, settle_seconds: float) -> Failure | None:
        """The cause among all failures: the peers of a dead worker fail too, perhaps earlier.

        Args:
            settle_seconds: time since the first failure after which the cause has been reported.

        Returns:
            None if there is no failure, or the first is younger than ``settle_seconds``.
        """
        failed = {
            number: rank
            for number, rank in self.workers.items()
            if rank.failed_at and not rank.done
        }
        if self.scheduler.exit not in (None, EXIT_OK):
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
                return failure.worker_died(
                    number,
                    rank.exit,
                    self._log(number),
                    oom_killer=self._oom_watch.killed(),
                    memory=self._oom_watch.memory(),
                    advice=self._memory_advice,
                )
        number, rank = ordered[0]
        if rank.failed:
            return failure.work_failed(number, rank.failed, self._log(number))
        return failure.worker_died(number, rank.exit or EXIT_OK, self._log(number))

    def find_unjoined(self, launched: float) -> Failure | None:
        """CLUSTER_TIMEOUT, if a worker has not joined the cluster in time."""
        seconds = self._devices.cluster_timeout_seconds
        if time.monotonic() - launched <= seconds:
            return None
        missing = [number for number, rank in self.workers.items() if not rank.ready]
        return failure.cluster_timeout(missing, len(self.workers), seconds, self._log(missing[0]))

    def find_stalled(self) -> Failure | None:
        """STALLED, if a worker has sent nothing for too long.

        Its peers wait for it in a collective operation and send nothing either: the error names
        the one whose process is suspended, or else the one that has been silent the longest.
        """
        timeout = self._stall_timeout
        now = time.monotonic()
        silent = [
            (not rank.suspended, rank.last_message, number)
            for number, rank in self.workers.items()
            if timeout and not rank.done and now - rank.last_message > timeout
        ]
        if not silent:
            return None
        running, last_message, number = min(silent)
        return failure.stalled(
            number,
            now - last_message,
            self._log(number),
            suspended=not running,
            stepped=self.stepped,
        )

    @property
    def stepped(self) -> bool:
        """A step, an evaluation or progress was reported by rank 0, as all workers take part."""
        return any(rank.stepped for rank in self.workers.values())

    @property
    def _stall_timeout(self) -> float:
        """Seconds; 0 = none. Longer before the first step, which includes compilation."""
        stall, first = self._devices.stall_timeout_seconds, self._devices.first_step_timeout_seconds
        if not stall or (not self.stepped and not first):
            return 0.0
        return max(stall if self.stepped else max(stall, first), MIN_STALL_SECONDS)

    def _log(self, number: int) -> Path | None:
        if number == SCHEDULER_RANK:
            return self._plan.scheduler_log
        return self._plan.worker_logs[number]


@dataclass(frozen=True)
class Finished:
    """The workers finished their work, or were stopped by request."""

    state: JobState
    message: str = ""


AttemptEnd = Finished | Failure


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job.

    Attributes:
        command: what to start for each rank.
        launcher: plans the processes.
        job_id: of the job.
        logs: folder for the logs of this attempt.
        limits: of the runner.
        stop: whether the job should stop.
        store: writes a record of this attempt to the event log.
        memory_advice: what to do if memory runs out.
        saves: whether workers save a checkpoint when they are stopped.
    """

    command: RankCommand
    launcher: Launcher
    job_id: str
    logs: Path
    limits: RunnerLimits
    stop: StopSignal
    store: Callable[[Record], None]
    memory_advice: str
    saves: bool = True

    def run(self) -> AttemptEnd:
        """Runs the attempt; returns when it has ended and none of its processes is left.

        Raises:
            MultigrainError: if the launcher does not support the devices.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        for last_port in (False,) * (self.limits.port_attempts - 1) + (True,):
            plan = self.launcher.plan(self.command, self.logs)
            with closing(ChannelServer(self.command.folder)) as server:
                launch = _Launch(self, plan, server)
                end = launch.run()
            port_taken = isinstance(end, Failure) and not launch.running and plan.port_was_taken()
            if last_port or not port_taken:
                break
            log.warning("scheduler port was taken by another process; trying another one")
        return end


class _Launch:
    """The processes of an attempt, from their start to their end."""

    def __init__(self, attempt: Attempt, plan: LaunchPlan, server: ChannelServer) -> None:
        self._attempt = attempt
        self._plan = plan
        self._server = server
        command = attempt.command
        self._ranks = Ranks(command.world, command.devices, plan, attempt.memory_advice)
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
                self._receive()
                # If the runner itself was delayed (by a full disk, for example), it must receive
                # what was sent meanwhile before it considers a worker stalled or dead.
                if time.monotonic() - began < _DELAY_SECONDS:
                    end = self._find_end()
            if isinstance(end, Finished):
                self._wait_for_exits()
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
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(open_to_write(plan.log, flags), "wb") as output:
            return subprocess.Popen(
                plan.command,
                env=child_environment(environment),
                cwd=self._attempt.logs,  # MindSpore writes files to the working directory
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=child_setup(os.getpid()),
            )

    def _receive(self) -> None:
        messages = self._server.wait(_TICK_SECONDS)
        self._quiet = not messages
        for received in messages:
            hello = received.peer.hello
            rank = self._ranks.get(hello.rank) if hello else None
            if rank is None:
                log.warning("message from unknown rank: hello=%s", hello)
            elif isinstance(hello, GuardHello):
                rank.on_guard_message(received.message)
                if isinstance(received.message, Terminate):
                    log.info("guard received SIGTERM: rank=%d", hello.rank)
                    self._attempt.stop.request()
            else:
                self._on_worker_message(rank, received)

    def _on_worker_message(self, rank: Rank, received: Received) -> None:
        message = received.message
        rank.on_message(message)
        if isinstance(message, Hello):
            rank.worker = received.peer
            if self._stopping_since is not None:
                received.peer.send(Stop())
        elif isinstance(message, Emit):
            if isinstance(message.record, StateRecord):
                log.warning("state from a worker ignored: %s", received.peer.hello)
            else:
                self._attempt.store(message.record)
        if not self.running and self._ranks.all_ready:
            self.running = True
            world = self._attempt.command.world
            text = "1 worker is running" if world == 1 else f"{world} workers are running"
            self._attempt.store(StateRecord(JobState.RUNNING, text))

    def _find_end(self) -> AttemptEnd | None:
        """The result of the attempt, if it has ended."""
        if self._ranks.all_done:
            return self._finished()
        if self._attempt.stop.requested and self._stopping_since is None:
            self._stopping_since = time.monotonic()
            text = self._attempt.stop.reason
            if self._nothing_to_save or not self._attempt.saves:
                text = "stop requested: there is nothing to save"
            self._attempt.store(StateRecord(JobState.STOPPING, text))
            if not self.running:
                number = self._attempt.command.attempt
                message = f"canceled before attempt {number} started to work"
                return Finished(JobState.CANCELLED, message)
            for rank in self._ranks.workers.values():
                if rank.worker:
                    rank.worker.send(Stop())
        found = (
            self._ranks.find_failure(self._attempt.limits.settle_seconds)
            or self._find_unreported_exit()
            or (
                self._ranks.find_stalled()
                if self.running
                else self._ranks.find_unjoined(self._launched)
            )
        )
        return found if self._stopping_since is None else self._find_end_of_stop(found)

    @property
    def _nothing_to_save(self) -> bool:
        """This attempt of a training job has not done a step: every earlier one is saved.

        Its graphs may be compiling, which takes minutes and cannot be interrupted.
        """
        return self._attempt.saves and not self._ranks.stepped

    def _find_end_of_stop(self, found: Failure | None) -> AttemptEnd | None:
        """After a stop request a failure is not retried, but reported if saving may have failed."""
        if found is not None and not found.retryable:
            return found
        if found is not None:
            return Finished(
                JobState.CANCELLED,
                f"canceled after an unclean shutdown: {found.error.message}; "
                "earlier checkpoints are kept",
            )
        grace = self._attempt.limits.stop_grace_seconds
        waited = time.monotonic() - (self._stopping_since or 0.0)
        if self._nothing_to_save and waited > self._attempt.limits.unsaved_stop_seconds:
            message = "canceled before a step was done: there was nothing to save"
            return Finished(JobState.CANCELLED, message)
        if waited <= grace:
            return None
        return Finished(
            JobState.CANCELLED,
            f"canceled: the workers did not stop within {grace:g} s and were killed; "
            "earlier checkpoints are kept",
        )

    def _finished(self) -> AttemptEnd:
        done = {number: rank.done for number, rank in self._ranks.workers.items() if rank.done}
        stopped = [number for number, outcome in done.items() if outcome.stopped]
        if not stopped:
            return Finished(JobState.SUCCEEDED, done[0].message)
        if self._stopping_since is not None:
            return Finished(JobState.CANCELLED, done[0].message)
        unrequested = Failed("", "stopped without a stop request")
        return failure.work_failed(stopped[0], unrequested, self._plan.worker_logs[stopped[0]])

    def _find_unreported_exit(self) -> Failure | None:
        """A failure if a process exited that no guard has reported: its interpreter did not start.

        The exits of all others are known once all messages have been received.
        """
        if not self._quiet or any(rank.exit for rank in self._ranks.every):
            return None
        for process, plan in zip(self._processes, self._plan.processes, strict=True):
            code = process.poll()
            if code is not None:
                return failure.process_ended(code, plan.log)
        return None

    def _wait_for_exits(self) -> None:
        """Waits for workers that have finished to leave the cluster and exit."""
        deadline = time.monotonic() + self._attempt.limits.exit_seconds
        while not self._ranks.all_exited and time.monotonic() < deadline:
            self._receive()
        for number, rank in self._ranks.workers.items():
            if rank.done and rank.exit != EXIT_OK:
                log.warning("worker exited uncleanly: rank=%d exit=%s", number, rank.exit)

    def _end_processes(self) -> None:
        remaining = end_all(self._attempt.command.folder)
        for process in self._processes:
            process.poll()
        if remaining:
            message = f"processes could not be killed: {remaining}"
            self._attempt.store(LogRecord("ERROR", message))
