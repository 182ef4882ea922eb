"""What the runner knows of each rank, and which of all failures was the cause."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from multigrain.events.records import EvaluationRecord, LossRecord, ProgressRecord
from multigrain.jobs import failure
from multigrain.jobs.channel import Peer
from multigrain.jobs.failure import Failure
from multigrain.jobs.launcher.base import LaunchPlan
from multigrain.jobs.messages import SCHEDULER_RANK, Done, Emit, Exit, Failed, Message, Ready
from multigrain.jobs.oom import oom_kills
from multigrain.spec.base import DeviceSpec

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
        self._oom_kills = oom_kills()

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
                killer = oom_kills() > self._oom_kills
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
