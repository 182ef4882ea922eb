"""Supervises every job that has not ended: queue, runners, events, and the end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from multigrain.errors import MultigrainError
from multigrain.events.records import JobError, JobState, Record, StateRecord
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits, write_limits
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest
from multigrain.jobs.launchers import COMPILE_CACHE_SIZE_VARIABLE, COMPILE_CACHE_VARIABLE
from multigrain.jobs.limits import EXIT_DISK_FULL, is_disk_full
from multigrain.processes import needed_environment
from multigrain.sandbox.policies import WORKER_VARIABLE
from multigrain_server.asyncio_utils import background_task
from multigrain_server.backoff import backoff_seconds
from multigrain_server.devices import Leases
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.files import (
    append_event,
    drop_lease,
    load_lease,
    runner_log_tail,
    save_cancel,
    save_lease,
)
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.runner_process import RunnerProcess
from multigrain_server.jobs.store import JobStore

_log = structlog.get_logger(__name__)

# Records that show progress of the job (a state change and a log message do not).
_PROGRESS_KINDS = frozenset({"loss", "evaluation", "checkpoint", "artifact", "progress"})
_MIN_FREE_BYTES = 1 << 16  # a few events, or a final one that holds the tail of a log
_DISK_CHECK_SECONDS = 1.0
_QUEUED_CHECK_SECONDS = 1.0
# Scheduling takes at most one part in so many of the time.
_SCHEDULE_FACTOR = 20.0


@dataclass
class ActiveJob:
    """Mutable state of one supervised job.

    Attributes:
        runner: its runner process, None while it has none.
        started: whether a runner was started or found since the job was last queued.
        crashes: times in a row that a runner exited without progress of the job.
        not_before: loop time before which no runner is started again.
        retry_at: loop time before which the job is left alone after an error.
        stop_sent: whether its runner was sent the signal for ``cancel_requested``.
        waiting: why it is queued, or "".
        disk_full: whether its events are delayed by a full disk.
        saved_at: loop time of the last write to the index.
        saved_state: state in the index.
        saved_seq: newest event in the index.
    """

    request: JobRequest
    folder: JobFolder
    feed: EventFeed
    runner: RunnerProcess | None = None
    started: bool = False
    crashes: int = 0
    not_before: float = 0.0
    retry_at: float = 0.0
    check_at: float = 0.0
    cancel_requested: bool = False
    stop_sent: bool = False
    waiting: str = ""
    disk_full: bool = False
    saved_at: float = 0.0
    saved_state: JobState | None = None
    saved_seq: int = -1

    @property
    def job_id(self) -> str:
        return self.request.job_id

    @property
    def queued(self) -> bool:
        """Whether it waits for its first runner since it was last queued."""
        return not self.started and self.feed.view.state is JobState.QUEUED

    @property
    def queue_key(self) -> tuple[str, str]:
        return (self.feed.view.queued_time, self.job_id)

    def job(self) -> Job:
        return Job(
            self.request, self.feed.view, self.cancel_requested, self.waiting, self.disk_full
        )


class DiskSpace:
    """Whether the disk of the job folders is full; checked once per second at most."""

    def __init__(self) -> None:
        self._check_at = 0.0
        self._full = False

    def full(self, path: Path) -> bool:
        """Whether the disk of ``path`` has hardly any space left for an event."""
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + _DISK_CHECK_SECONDS
            disk = os.statvfs(path)
            # f_bfree includes the blocks that are reserved for root.
            blocks = disk.f_bavail if os.geteuid() else disk.f_bfree
            self._full = blocks * disk.f_frsize < _MIN_FREE_BYTES
        return self._full


@dataclass(frozen=True)
class SupervisorOptions:
    """
    Attributes:
        command: starts a runner; the job folder is appended.
        image_limits: of the image files in a dataset: those of serving, so that what is served can
            be trained on.
        sandbox: whether workers restrict themselves.
        compile_cache: folder of compiled graphs; None = they are not kept.
        compile_cache_bytes: its size at most.
        worker_environment: further environment variables for the processes of jobs: see
            ``multigrain.processes.needed_environment``.
        poll_seconds: interval at which events and processes are checked.
        save_seconds: maximum delay of the index behind the events (states are not delayed).
        max_runner_crashes: after this many in a row the job is FAILED(RUNNER_LOST).
        restart_delay_seconds: before a crashed runner starts again; doubles with each crash.
        error_retry_seconds: wait after an error in the supervision of a job.
    """

    command: Sequence[str]
    image_limits: ImageLimits = DEFAULT_LIMITS
    sandbox: Literal["auto", "off"] = "auto"
    compile_cache: Path | None = None
    compile_cache_bytes: int = 0
    worker_environment: tuple[str, ...] = ()
    poll_seconds: float = 0.05
    save_seconds: float = 1.0
    max_runner_crashes: int = 3
    restart_delay_seconds: float = 0.5
    error_retry_seconds: float = 1.0


class Supervisor:
    """One task that checks all active jobs in turn. All of it runs on the event loop.

    Args:
        store: the index, which is kept up to date.
        leases: devices; a job holds its lease until its runner has exited.
        options: intervals and limits.
        on_end: called with each job that ended.
        on_event: called with each new event's kind.

    Attributes:
        active: jobs that have not ended, by id.
    """

    def __init__(
        self,
        store: JobStore,
        leases: Leases,
        options: SupervisorOptions,
        on_end: Callable[[ActiveJob], None] = lambda _active: None,
        on_event: Callable[[str], None] = lambda _kind: None,
    ) -> None:
        self._store = store
        self._leases = leases
        self._options = options
        self._on_end = on_end
        self._on_event = on_event
        self.active: dict[str, ActiveJob] = {}
        self._task: asyncio.Task[None] | None = None
        self._schedule_at = 0.0
        self._disk = DiskSpace()

    def add(self, active: ActiveJob) -> None:
        """Starts supervising a job that has not ended; finds its runner and its devices."""
        active.runner = RunnerProcess.find(active.folder)
        active.started = active.runner is not None or active.feed.view.state is not JobState.QUEUED
        if active.started:
            lease = load_lease(active.folder)
            if lease is not None:
                self._leases.restore(lease)
            else:
                # The earlier daemon ended before it started a runner.
                self._leases.acquire(active.job_id, active.request.spec.devices)
            _log.info(
                "job recovered",
                job_id=active.job_id,
                runner=active.runner.pid if active.runner else None,
                state=active.feed.view.state.value,
            )
        self.active[active.job_id] = active

    def start(self) -> None:
        """Starts the task; jobs that were added before are scheduled at once."""
        self.schedule()
        self._task = background_task(self._run(), name="supervisor")

    async def stop(self) -> None:
        """Stops the task. Runners keep running: a later daemon finds them, and reads what they
        wrote meanwhile from their event logs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self.check_all()
            await asyncio.sleep(self._options.poll_seconds)

    async def check_all(self) -> None:
        """Checks every job once, and starts those that can be started.

        A full disk or a defect of one job does not affect the others: that job is left alone for
        ``error_retry_seconds``.
        """
        now = asyncio.get_running_loop().time()
        for active in list(self.active.values()):
            if now < active.retry_at or (active.queued and now < active.check_at):
                continue
            # Nobody but the daemon writes events of a queued job.
            active.check_at = now + _QUEUED_CHECK_SECONDS
            try:
                active.disk_full = self._disk.full(active.folder.path)
                self._check(active)
            except Exception as error:
                active.retry_at = now + self._options.error_retry_seconds
                expected = isinstance(error, MultigrainError)  # its message says what is wrong
                _log.error(
                    "job supervision failed; retrying",
                    job_id=active.job_id,
                    reason=str(error),
                    exc_info=not expected,
                )
            await asyncio.sleep(0)
        if now < self._schedule_at:
            return
        start = time.thread_time()
        try:
            self.schedule()
            # With many queued jobs it takes milliseconds, of which there must not be many.
            spent = _SCHEDULE_FACTOR * (time.thread_time() - start)
            self._schedule_at = now + min(spent, _QUEUED_CHECK_SECONDS)
        except Exception:
            self._schedule_at = now + self._options.error_retry_seconds
            _log.exception("job scheduling failed; retrying")

    def _check(self, active: ActiveJob) -> None:
        exited = active.runner is not None and not active.runner.alive()
        # After the check of the process: everything that it wrote can be read now.
        kinds = active.feed.poll(max_chunks=4)
        for kind in kinds.elements():
            self._on_event(kind)
        if _PROGRESS_KINDS & kinds.keys():
            active.crashes = 0
        self._save_if_due(active)
        if not active.started and not active.queued:
            # An earlier daemon had just started the runner, which has only now written events.
            active.runner, active.started = RunnerProcess.find(active.folder), True
        elif exited and not active.feed.at_end:
            pass  # more than is read at once: the rest is read at the next checks
        elif exited:
            self._runner_exited(active)
        elif active.runner is None and active.started:
            self._without_runner(active)
        elif active.cancel_requested and not active.stop_sent:
            self._send_stop(active)

    def _save_if_due(self, active: ActiveJob) -> None:
        now = asyncio.get_running_loop().time()
        state = active.feed.view.state
        if state is not active.saved_state or now - active.saved_at >= self._options.save_seconds:
            self._save(active)
            active.saved_at, active.saved_state = now, state

    def _save(self, active: ActiveJob) -> None:
        if active.saved_seq != active.feed.last_seq:
            self._store.save_view(active.job_id, active.feed.view, active.feed.offset)
            active.saved_seq = active.feed.last_seq

    # --- runners ---------------------------------------------------------------------------

    def _runner_exited(self, active: ActiveJob) -> None:
        runner, active.runner = active.runner, None
        view = active.feed.view
        if view.state.terminal:
            self._finish(active)
            return
        if runner is not None and runner.exit_code == EXIT_DISK_FULL:
            self._wait_for_disk_space(active, "its runner exited")
            return
        self._count_crash(active)
        _log.warning(
            "runner exited before the job finished",
            job_id=active.job_id,
            exit_code=runner.exit_code if runner else None,
            crashes=active.crashes,
        )

    def _without_runner(self, active: ActiveJob) -> None:
        """Handles a job that was started, has not ended, and has no runner."""
        view = active.feed.view
        if view.state.terminal:
            self._finish(active)
        elif active.cancel_requested:
            message = "canceled; the runner exited before it could save a checkpoint"
            self.write(active, StateRecord(JobState.CANCELLED, message))
        elif active.crashes >= self._options.max_runner_crashes:
            message = (
                f"the job's runner exited {active.crashes} times in a row without progress of "
                "the job; its output is in workers/runner.log of the job's folder. Fix the "
                "cause, then resume the job"
            )
            error = JobError("RUNNER_LOST", message, log_tail=runner_log_tail(active.folder))
            self.write(active, StateRecord(JobState.FAILED, message, error))
        elif asyncio.get_running_loop().time() >= active.not_before:
            self._start_runner(active)

    def _start_runner(self, active: ActiveJob) -> None:
        lease = self._leases.acquire(active.job_id, active.request.spec.devices)
        environment = needed_environment(os.environ, self._options.worker_environment)
        environment[WORKER_VARIABLE] = self._options.sandbox
        if self._options.compile_cache is not None and self._options.compile_cache_bytes:
            environment[COMPILE_CACHE_VARIABLE] = str(self._options.compile_cache)
            environment[COMPILE_CACHE_SIZE_VARIABLE] = str(self._options.compile_cache_bytes)
        environment |= lease.environment() if lease is not None else {}
        active.started = True
        active.waiting = "starting"
        try:
            if lease is not None:
                save_lease(active.folder, lease)
            # At each start: a resumed job has the limits of this daemon.
            write_limits(active.folder.image_limits, self._options.image_limits)
            active.runner = RunnerProcess.start(active.folder, self._options.command, environment)
        except OSError as error:
            if is_disk_full(error):
                self._wait_for_disk_space(active, str(error))
                return
            self._count_crash(active)
            _log.error("cannot start the runner", job_id=active.job_id, reason=str(error))
            return
        _log.info("runner started", job_id=active.job_id, runner=active.runner.pid)

    def _count_crash(self, active: ActiveJob) -> None:
        active.crashes += 1
        delay = backoff_seconds(active.crashes, self._options.restart_delay_seconds)
        active.not_before = asyncio.get_running_loop().time() + delay

    def _wait_for_disk_space(self, active: ActiveJob, reason: str) -> None:
        """A full disk is not a crash: the runner is started again however often that fails."""
        active.not_before = asyncio.get_running_loop().time() + self._options.error_retry_seconds
        _log.error("disk full; job is waiting for space", job_id=active.job_id, reason=reason)

    def _finish(self, active: ActiveJob) -> None:
        self._leases.release(active.job_id)
        drop_lease(active.folder)
        self._save(active)  # raises if the disk is full: then all of this is retried
        self.active.pop(active.job_id, None)
        view = active.feed.view
        ended = _log.bind(job_id=active.job_id, state=view.state.value)
        if view.error:
            ended.warning("job ended", error=view.error.message)
        else:
            ended.info("job ended")
        self._on_end(active)

    # --- requests --------------------------------------------------------------------------

    def schedule(self) -> None:
        """Starts queued jobs in the order of submission as far as devices are free. A job never
        overtakes an earlier one that waits for the same kind of device."""
        blocked: dict[str, int] = {}
        waiting = sorted(
            (a for a in self.active.values() if a.queued and not a.cancel_requested),
            key=lambda active: active.queue_key,
        )
        for active in waiting:
            devices = active.request.spec.devices
            if not self._leases.possible(devices):
                # The server has fewer devices than at submission: others must not wait for it.
                active.waiting = self._leases.explain(devices)
                continue
            ahead = blocked.get(devices.target, 0)
            if not ahead and self._leases.acquire(active.job_id, devices) is not None:
                self._start_runner(active)
                continue
            blocked[devices.target] = ahead + 1
            position = f"; {ahead} before it in the queue" if ahead else ""
            active.waiting = self._leases.explain(devices) + position

    def cancel(self, active: ActiveJob) -> None:
        """Requests an active job to stop; a queued one ends at once."""
        if not active.cancel_requested:
            active.cancel_requested = True
            try:
                save_cancel(active.folder, active.feed.view.queued_time)
                self._store.save_cancel(active.job_id, True)
            except (OSError, MultigrainError) as error:
                # The job is stopped all the same: that may be what frees up a full disk.
                _log.error(
                    "cancel request could not be persisted",
                    job_id=active.job_id,
                    reason=str(error),
                )
        self._send_stop(active)

    def _send_stop(self, active: ActiveJob) -> None:
        """Signals the runner, or ends a job that has none yet. If neither is possible now (a
        runner of an earlier daemon has not written its pid yet), the next check tries again."""
        if active.runner is not None:
            active.stop_sent = active.runner.terminate()
        elif active.queued:
            self.write(active, StateRecord(JobState.CANCELLED, "canceled while it was queued"))

    def write(self, active: ActiveJob, record: Record) -> bool:
        """Appends an event in place of the runner.

        Returns:
            False if there still is a runner, which is then the one to write.

        Raises:
            MultigrainError: STORAGE.
        """
        if not append_event(active.folder, record, active.feed.view.attempt):
            return False
        for kind in active.feed.poll().elements():
            self._on_event(kind)
        if active.feed.view.state.terminal:
            active.runner = None
            self._finish(active)
        return True
