"""One attempt at a job: starts its processes, listens to them, and leaves none behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from multigrain.events.records import JobState, LogRecord, Record, StateRecord
from multigrain.jobs import failure, messages
from multigrain.jobs.channel import ChannelServer, Peer, Received
from multigrain.jobs.failure import Failure
from multigrain.jobs.launcher.base import Launcher, LaunchPlan, ProcessPlan, RankCommand
from multigrain.jobs.limits import RunnerLimits, StopSignal
from multigrain.jobs.messages import SCHEDULER_RANK, Done, Exit, Failed, GuardHello, Hello, Stop
from multigrain.jobs.processes import child_setup, collect_children, end_all, job_environment
from multigrain.jobs.rank import CHANNEL_VARIABLE, TOKEN_VARIABLE

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Finished:
    """The work ended as its workers say, or was ended because a stop was asked for."""

    state: JobState
    message: str = ""


AttemptEnd = Finished | Failure


@dataclass
class _Rank:
    """What is known of a rank."""

    worker: Peer | None = None
    ready: bool = False
    heard: float = 0.0
    done: Done | None = None
    failed: Failed | None = None
    exit: Exit | None = None
    failed_at: float = 0.0


@dataclass
class Attempt:
    """Args:
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
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _running: bool = False
    _stopping_since: float | None = None

    def run(self) -> AttemptEnd:
        """Returns when the attempt has ended and no process of it is left.

        Raises:
            MultigrainError: if the devices cannot be launched in this way.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        for _ in range(self.limits.port_attempts):
            plan = self.launcher.plan(self.command, self.logs)
            end = self._run_once(plan)
            if self._running or not isinstance(end, Failure) or not plan.port_was_taken():
                break
            log.warning("the scheduler's port was taken by another process; trying another one")
        return end

    def _run_once(self, plan: LaunchPlan) -> AttemptEnd:
        self._ranks = {rank: _Rank() for rank in range(self.command.world)}
        self._ranks[SCHEDULER_RANK] = _Rank()
        with closing(ChannelServer()) as server:
            try:
                signal.set_wakeup_fd(server.wakeup_fd)
                self._started = [self._start(process, server) for process in plan.processes]
                launched = time.monotonic()
                end: AttemptEnd | None = None
                while end is None:
                    for received in server.wait(_TICK_SECONDS):
                        self._handle(received)
                    end = self._judge(plan, launched)
                if isinstance(end, Finished):
                    self._let_workers_leave(server)
                return end
            finally:
                signal.set_wakeup_fd(-1)
                self._end_processes()

    def _start(self, plan: ProcessPlan, server: ChannelServer) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **job_environment(self.job_id, self.command.folder),
            CHANNEL_VARIABLE: server.address,
            TOKEN_VARIABLE: server.token,
            **plan.environment,
        }
        with plan.log.open("wb") as output:
            return subprocess.Popen(
                plan.command,
                env=environment,
                cwd=self.logs,  # where MindSpore leaves its own files
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=child_setup(os.getpid()),
            )

    # What comes in.

    def _handle(self, received: Received) -> None:
        hello = received.peer.hello
        if isinstance(hello, GuardHello):
            self._handle_guard(hello, received)
        elif isinstance(hello, Hello) and hello.rank in self._ranks:
            self._handle_worker(self._ranks[hello.rank], hello.rank, received)

    def _handle_guard(self, hello: GuardHello, received: Received) -> None:
        rank = self._ranks.get(hello.rank)
        if rank is None:
            return
        if isinstance(received.message, Exit):
            rank.exit = received.message
        elif isinstance(received.message, messages.Terminate):
            log.info("the guard of rank %d got SIGTERM: ending the job in order", hello.rank)
            self.stop.request()
        elif received.message is None and rank.exit is None:
            # A guard tells of every other end: only SIGKILL leaves it no time.
            rank.exit = Exit(128 + signal.SIGKILL, signal.SIGKILL)
        if rank.exit and not rank.failed_at:
            rank.failed_at = time.monotonic()

    def _handle_worker(self, rank: _Rank, number: int, received: Received) -> None:
        rank.heard = time.monotonic()
        match received.message:
            case Hello():
                rank.worker = received.peer
                if self._stopping_since is not None:
                    received.peer.send(Stop())
            case messages.Ready():
                rank.ready = True
                if not self._running and all(r.ready for r in self._workers().values()):
                    self._running = True
                    self.record(StateRecord(JobState.RUNNING, self._running_message()))
            case messages.Emit(record=StateRecord()):
                log.warning("rank %d sent a state, which is the runner's to decide", number)
            case messages.Emit(record=record):
                self.record(record)
            case Done() as done:
                rank.done = done
            case Failed() as failed:
                rank.failed = failed
                rank.failed_at = rank.failed_at or rank.heard
            case None:
                rank.worker = None

    # What it means.

    def _judge(self, plan: LaunchPlan, launched: float) -> AttemptEnd | None:
        """The end of the attempt, if it has come."""
        workers = self._workers()
        now = time.monotonic()
        if all(rank.done for rank in workers.values()):
            return self._finished()
        if self.stop.requested and self._stopping_since is None:
            self._stopping_since = now
            self.record(StateRecord(JobState.STOPPING, self.stop.reason))
            if not self._running:
                return Finished(JobState.CANCELLED, "cancelled before the work began")
            for rank in workers.values():
                if rank.worker:
                    rank.worker.send(Stop())
        found = self._find_failure(plan, now)
        if found is None:
            found = self._find_timeout(plan, launched, now)
        if found is not None and self._stopping_since is not None and found.retried:
            return Finished(
                JobState.CANCELLED,
                f"cancelled, but not in order: {found.error.message}. "
                "The checkpoints written before are kept",
            )
        if found is None and self._stopping_since is not None:
            grace = self.limits.stop_grace_seconds
            if now - self._stopping_since > grace:
                return Finished(
                    JobState.CANCELLED,
                    f"the workers did not end in order within {grace:g} s and were killed; "
                    "the checkpoints written before are kept",
                )
        return found

    def _finished(self) -> AttemptEnd:
        done = {number: rank.done for number, rank in self._workers().items() if rank.done}
        message = done[0].message
        stopped = [number for number, outcome in done.items() if outcome.stopped]
        if not stopped:
            return Finished(JobState.SUCCEEDED, message)
        if self._stopping_since is not None:
            return Finished(JobState.CANCELLED, message)
        return failure.work_failed(
            stopped[0], Failed("", "the work stopped though nobody asked for it"), None
        )

    def _find_failure(self, plan: LaunchPlan, now: float) -> Failure | None:
        """The cause among all failures: peers of a dead worker fail too, and may say so first."""
        failed = {
            number: rank
            for number, rank in self._ranks.items()
            if not rank.done and rank.failed_at and (number >= 0 or rank.exit != Exit(0))
        }
        if not failed:
            return self._find_dead_launcher(plan)
        ordered = sorted(failed.items(), key=lambda item: item[1].failed_at)
        if now - ordered[0][1].failed_at < self.limits.settle_seconds:
            return None
        for number, rank in ordered:
            if rank.failed and rank.failed.kind:
                return failure.work_failed(number, rank.failed, plan.worker_logs[number])
        for number, rank in ordered:
            if number >= 0 and rank.exit and rank.exit.signal is not None and not rank.failed:
                return failure.worker_died(number, rank.exit, plan.worker_logs[number])
        number, rank = ordered[0]
        if rank.failed:
            return failure.work_failed(number, rank.failed, plan.worker_logs[number])
        assert rank.exit is not None
        path = plan.scheduler_log if number == SCHEDULER_RANK else plan.worker_logs[number]
        return failure.worker_died(number, rank.exit, path)

    def _find_dead_launcher(self, plan: LaunchPlan) -> Failure | None:
        for process, planned in zip(self._started, plan.processes, strict=True):
            code = process.poll()
            if code is not None and not any(rank.exit for rank in self._workers().values()):
                return failure.launcher_ended(code, planned.log)
        return None

    def _find_timeout(self, plan: LaunchPlan, launched: float, now: float) -> Failure | None:
        devices = self.command.devices
        workers = self._workers()
        if not self._running:
            if now - launched <= devices.cluster_timeout_seconds:
                return None
            missing = [number for number, rank in workers.items() if not rank.ready]
            return failure.cluster_timeout(
                missing,
                len(workers),
                devices.cluster_timeout_seconds,
                plan.worker_logs[missing[0]],
            )
        limit = devices.stall_timeout_seconds
        silent = [
            (rank.heard, number)
            for number, rank in workers.items()
            if limit and not rank.done and now - rank.heard > limit
        ]
        if not silent:
            return None
        _, number = min(silent)
        return failure.stalled(number, limit, plan.worker_logs[number])

    # The end.

    def _let_workers_leave(self, server: ChannelServer) -> None:
        """Waits for workers that have done their work to close what they hold (the cluster)."""
        deadline = time.monotonic() + self.limits.leave_seconds
        while time.monotonic() < deadline:
            if all(rank.exit or not rank.done for rank in self._workers().values()):
                break
            for received in server.wait(_TICK_SECONDS):
                self._handle(received)
        for number, rank in self._workers().items():
            if rank.done and rank.exit != Exit(0):
                log.warning("rank %d did its work, but did not leave well: %s", number, rank.exit)

    def _end_processes(self) -> None:
        left = end_all(self.command.folder)
        for process in self._started:
            process.poll()
        collect_children()
        if left:
            self.record(LogRecord("ERROR", f"processes that cannot be ended: {left}"))

    def _workers(self) -> dict[int, _Rank]:
        return {number: rank for number, rank in self._ranks.items() if number >= 0}

    def _running_message(self) -> str:
        world = self.command.world
        return "1 worker is running" if world == 1 else f"{world} workers are running"
