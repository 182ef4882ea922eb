"""A job that has not ended, in the supervisor's hands."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from multigrain.errors import MultigrainError
from multigrain.events.records import JobError, JobState, Record, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest
from multigrain.jobs.limits import EXIT_NO_ROOM, no_room
from multigrain_server.devices import Leases
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.files import (
    append,
    drop_lease,
    load_lease,
    runner_log_tail,
    save_cancel,
    save_lease,
)
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.runner_process import RunnerProcess
from multigrain_server.jobs.store import JobStore


@dataclass
class ActiveJob:
    """Mutable state of one supervised job.

    Attributes:
        runner: its runner while that lives.
        started: whether a runner was ever started or found for this run of the job.
        crashes: runners that ended in a row without bringing the job on.
        not_before: loop time before which no runner is started again.
        look_at: loop time before which it is not looked at again, after that went wrong.
        told_to_end: whether its runner has heard of ``cancel_requested``.
        disk_full: whether its disk has no room for an event.
        saved_at: loop time of the last write to the index.
    """

    request: JobRequest
    folder: JobFolder
    feed: EventFeed
    runner: RunnerProcess | None = None
    started: bool = False
    crashes: int = 0
    not_before: float = 0.0
    look_at: float = 0.0
    cancel_requested: bool = False
    told_to_end: bool = False
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
        """Whether it still waits for its first runner of this run."""
        return not self.started and self.feed.view.state is JobState.QUEUED

    @property
    def queue_key(self) -> tuple[str, str]:
        return (self.feed.view.queued_time, self.job_id)

    def job(self) -> Job:
        return Job(
            self.request, self.feed.view, self.cancel_requested, self.waiting, self.disk_full
        )


# MERGED: Whether the disk of the job folders has room.


_LEAST_BYTES = 1 << 16  # a few events, or their last one with the tail of a log
_SECONDS = 1.0


class DiskRoom:
    """Looked at once a second at most."""

    def __init__(self) -> None:
        self._look_at = 0.0
        self._full = False

    def full(self, path: Path) -> bool:
        """Whether there is hardly room for an event on the disk of ``path``."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _SECONDS
            disk = os.statvfs(path)
            # What is kept back for root is room only for root.
            blocks = disk.f_bavail if os.geteuid() else disk.f_bfree
            self._full = blocks * disk.f_frsize < _LEAST_BYTES
        return self._full


# MERGED: Keeps every job that has not ended going: queue, runners, events, end.


_log = structlog.get_logger(__name__)

# Records that show that a runner brought its job on (a start and a log line do not).
_PROGRESS_KINDS = frozenset({"loss", "evaluation", "checkpoint", "artifact", "progress"})


@dataclass(frozen=True)
class SupervisorOptions:
    """
    Attributes:
        command: starts a runner; the job folder is appended.
        poll_seconds: interval at which events and processes are looked at.
        save_seconds: the index is at most so much behind the events (states: not at all).
        max_runner_crashes: after so many in a row the job is FAILED(RUNNER_LOST).
        restart_delay_seconds: before a crashed runner starts again; doubles with each crash.
        trouble_seconds: before a job is looked at again with which something went wrong.
    """

    command: Sequence[str]
    poll_seconds: float = 0.05
    save_seconds: float = 1.0
    max_runner_crashes: int = 3
    restart_delay_seconds: float = 0.5
    trouble_seconds: float = 1.0


class Supervisor:
    """One task that looks at all active jobs in turn. All of it runs on the event loop.

    Args:
        store: the index, kept up to date.
        leases: devices; a job holds its lease until its runner is gone.
        options: how.
        on_end: called with each job that ended.
        on_event: called with each new event's kind.
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
        self._room = DiskRoom()

    def add(self, active: ActiveJob) -> None:
        """Takes charge of a job that has not ended; finds its runner and its devices."""
        active.runner = RunnerProcess.find(active.folder)
        active.started = active.runner is not None or active.feed.view.state is not JobState.QUEUED
        if active.started:
            lease = load_lease(active.folder)
            if lease is not None:
                self._leases.restore(lease)
            else:
                # It had none noted yet: its runner had not been started.
                self._leases.acquire(active.job_id, active.request.spec.devices)
            _log.info(
                "job found again",
                job_id=active.job_id,
                runner=active.runner.pid if active.runner else None,
                state=active.feed.view.state.value,
            )
        self.active[active.job_id] = active

    def start(self) -> None:
        """Begins to supervise; what was added before is looked at at once."""
        self.schedule()
        self._task = asyncio.create_task(self._run(), name="supervisor")

    async def stop(self) -> None:
        """Stops looking. Runners go on: a later daemon finds them again, and takes what they told
        from their jobs' records."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._options.poll_seconds)

    async def look(self) -> None:
        """Looks after every job once, and starts what can be started.

        A full disk or a defect with one job must not hold up the others: it is left alone for
        a while, they are not.
        """
        now = asyncio.get_running_loop().time()
        for active in list(self.active.values()):
            if now < active.look_at:
                continue
            try:
                active.disk_full = self._room.full(active.folder.path)
                self._tick(active)
            except Exception as error:
                active.look_at = now + self._options.trouble_seconds
                known = isinstance(error, MultigrainError)  # the disk, which its message says
                _log.error(
                    "job could not be looked after",
                    job_id=active.job_id,
                    reason=str(error),
                    exc_info=not known,
                )
            await asyncio.sleep(0)
        if now < self._schedule_at:
            return
        try:
            self.schedule()
        except Exception:  # as above
            self._schedule_at = now + self._options.trouble_seconds
            _log.exception("queue could not be looked after")

    def _tick(self, active: ActiveJob) -> None:
        gone = active.runner is not None and not active.runner.alive()
        # After the look at the process: all that it wrote is there.
        kinds = active.feed.poll(max_chunks=None if gone else 4)
        for kind in kinds.elements():
            self._on_event(kind)
        if _PROGRESS_KINDS & kinds.keys():
            active.crashes = 0
        self._save_if_due(active)
        if not active.started and not active.queued:
            # An earlier daemon had just started its runner, which has made itself known late.
            active.runner, active.started = RunnerProcess.find(active.folder), True
        elif gone:
            self._runner_ended(active)
        elif active.runner is None and active.started:
            self._without_runner(active)
        elif active.cancel_requested and not active.told_to_end:
            self._tell_to_end(active)

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

    def _runner_ended(self, active: ActiveJob) -> None:
        runner, active.runner = active.runner, None
        view = active.feed.view
        if view.state.terminal:
            self._finish(active)
            return
        if runner is not None and runner.exit_code == EXIT_NO_ROOM:
            self._wait_for_room(active, "its runner ended")
            return
        self._crashed(active)
        _log.warning(
            "runner ended without an end of its job",
            job_id=active.job_id,
            exit_code=runner.exit_code if runner else None,
            crashes=active.crashes,
        )

    def _without_runner(self, active: ActiveJob) -> None:
        """A job that was started, has not ended, and has no runner."""
        view = active.feed.view
        if view.state.terminal:
            self._finish(active)
        elif active.cancel_requested:
            message = "cancelled; its runner had ended before it could save"
            self.write(active, StateRecord(JobState.CANCELLED, message))
        elif active.crashes >= self._options.max_runner_crashes:
            message = (
                f"the job's runner ended {active.crashes} times in a row without bringing the job "
                "on; its output is in workers/runner.log of the job's folder. Mend the cause, "
                "then resume the job"
            )
            error = JobError("RUNNER_LOST", message, log_tail=runner_log_tail(active.folder))
            self.write(active, StateRecord(JobState.FAILED, message, error))
        elif asyncio.get_running_loop().time() >= active.not_before:
            self._spawn(active)

    def _spawn(self, active: ActiveJob) -> None:
        lease = self._leases.acquire(active.job_id, active.request.spec.devices)
        environment = lease.environment() if lease is not None else {}
        active.started = True
        active.waiting = "starting"
        try:
            if lease is not None:
                save_lease(active.folder, lease)
            active.runner = RunnerProcess.spawn(active.folder, self._options.command, environment)
        except OSError as error:
            if no_room(error):
                self._wait_for_room(active, str(error))
                return
            self._crashed(active)
            _log.error("runner cannot be started", job_id=active.job_id, reason=str(error))
            return
        _log.info("runner started", job_id=active.job_id, runner=active.runner.pid)

    def _crashed(self, active: ActiveJob) -> None:
        delay = self._options.restart_delay_seconds * 2**active.crashes
        active.crashes += 1
        active.not_before = asyncio.get_running_loop().time() + delay

    def _wait_for_room(self, active: ActiveJob, reason: str) -> None:
        """A full disk is no crash of a runner: it is tried again for as long as it takes."""
        active.not_before = asyncio.get_running_loop().time() + self._options.trouble_seconds
        _log.error("no room for the job on the disk", job_id=active.job_id, reason=reason)

    def _finish(self, active: ActiveJob) -> None:
        self._leases.release(active.job_id)
        drop_lease(active.folder)
        self._save(active)  # on a full disk that raises: it is tried again
        self.active.pop(active.job_id, None)
        view = active.feed.view
        ended = _log.bind(job_id=active.job_id, state=view.state.value)
        if view.error:
            ended.warning("job ended", error=view.error.message)
        else:
            ended.info("job ended")
        self._on_end(active)

    # --- what requests ask for -------------------------------------------------------------

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
                # The device list has shrunk since: it must not hold up those behind it.
                active.waiting = self._leases.explain(devices)
                continue
            ahead = blocked.get(devices.target, 0)
            if not ahead and self._leases.acquire(active.job_id, devices) is not None:
                self._spawn(active)
                continue
            blocked[devices.target] = ahead + 1
            before = f"; {ahead} before it in the queue" if ahead else ""
            active.waiting = self._leases.explain(devices) + before

    def cancel(self, active: ActiveJob) -> None:
        """Asks an active job to end; a queued one ends at once."""
        if not active.cancel_requested:
            active.cancel_requested = True
            try:
                save_cancel(active.folder, active.feed.view.queued_time)
                self._store.save_cancel(active.job_id, True)
            except (OSError, MultigrainError) as error:
                # On a full disk above all a job must end that was asked to.
                _log.error("request to end not noted", job_id=active.job_id, reason=str(error))
        self._tell_to_end(active)

    def _tell_to_end(self, active: ActiveJob) -> None:
        """Tells the runner to end, or ends a job that has none yet. Where that cannot be done
        now (a runner of an earlier daemon has not said who it is), the next round tries again."""
        if active.runner is not None:
            active.told_to_end = active.runner.terminate()
        elif active.queued:
            self.write(active, StateRecord(JobState.CANCELLED, "cancelled while it was queued"))

    def write(self, active: ActiveJob, record: Record) -> bool:
        """Appends an event in place of the runner, which must be gone. False if it is not.

        Raises:
            MultigrainError: STORAGE.
        """
        if not append(active.folder, record, active.feed.view.attempt):
            return False
        for kind in active.feed.poll().elements():
            self._on_event(kind)
        if active.feed.view.state.terminal:
            active.runner = None
            self._finish(active)
        return True
