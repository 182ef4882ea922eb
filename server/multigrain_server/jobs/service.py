"""Operations on jobs: submit, get, list, stream events, cancel, resume, delete."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import utc_now
from multigrain.events.records import JobState, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain_server.asyncio_utils import cooperative, to_thread_uncancellable
from multigrain_server.devices import Leases
from multigrain_server.jobs import training_packages
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.files import (
    append_event,
    check_job_id,
    create_folder,
    move_to_trash,
    new_job_id,
)
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.listing_threads import in_listing_thread
from multigrain_server.jobs.queue_limits import QueueLimits
from multigrain_server.jobs.store import JobFilter, JobRow, JobStore
from multigrain_server.jobs.submission import CheckedSpec, Submission, check_resumable
from multigrain_server.jobs.supervisor import ActiveJob, Supervisor
from multigrain_server.paging import PageToken, page_size
from multigrain_server.storage_errors import storage_errors

_log = structlog.get_logger(__name__)

_MAX_IDLE_FEEDS = 32


class EventFeeds:
    """The event feeds of all jobs. The supervisor has those of active jobs; some of ended jobs
    are kept here, because a client that has seen the end often reads the events again.

    Args:
        jobs_dir: the folder of all job folders.
        supervisor: of the active jobs.
        heartbeat_seconds: of the streams.
    """

    def __init__(self, jobs_dir: Path, supervisor: Supervisor, heartbeat_seconds: float) -> None:
        self._jobs_dir = jobs_dir
        self._supervisor = supervisor
        self._heartbeat_seconds = heartbeat_seconds
        self._ended: OrderedDict[str, EventFeed] = OrderedDict()
        self._closed: MultigrainError | None = None
        self._turns = asyncio.Lock()

    def new(self, job_id: str) -> EventFeed:
        """A new feed that has read nothing yet."""
        path = JobFolder(self._jobs_dir / job_id).events
        return EventFeed(job_id, path, self._heartbeat_seconds, self._turns)

    def open(self, job_id: str) -> EventFeed:
        """The feed that all subscribers of a job share.

        Raises:
            MultigrainError: UNAVAILABLE when the server stops.
        """
        if self._closed is not None:
            raise self._closed
        active = self._supervisor.active.get(job_id)
        if active is not None:
            return active.feed
        if job_id not in self._ended:
            self.keep(self.new(job_id))
        self._ended.move_to_end(job_id)
        return self._ended[job_id]

    def keep(self, feed: EventFeed) -> None:
        """Keeps the feed of a job that has just ended, with its subscribers."""
        self._ended[feed.job_id] = feed
        idle = [job_id for job_id, kept in self._ended.items() if not kept.subscribers]
        for job_id in idle[: max(0, len(self._ended) - _MAX_IDLE_FEEDS)]:
            if job_id != feed.job_id:
                del self._ended[job_id]

    def take(self, job_id: str) -> EventFeed:
        """Removes and returns the feed of an ended job that is resumed, with its subscribers."""
        return self._ended.pop(job_id, None) or self.new(job_id)

    def drop(self, job_id: str, reason: MultigrainError) -> None:
        """Ends the streams of a deleted job."""
        feed = self._ended.pop(job_id, None)
        if feed is not None:
            feed.close(reason)

    def close(self) -> None:
        """Ends every stream with UNAVAILABLE: clients resume from their last seq later."""
        self._closed = MultigrainError(
            ErrorKind.UNAVAILABLE,
            "the server is shutting down; resume from the last seq when it is back",
            retry_after=1.0,
        )
        for feed in [a.feed for a in self._supervisor.active.values()] + [*self._ended.values()]:
            feed.close(self._closed)

    @property
    def subscribers(self) -> int:
        """Number of open streams."""
        feeds = [active.feed for active in self._supervisor.active.values()]
        return sum(feed.subscribers for feed in [*feeds, *self._ended.values()])


class JobReferences:
    """Which jobs that have not ended depend on a model or on another job's checkpoints."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def reader_of(self, folder: Path) -> str:
        """Id of a job that reads weights from below a folder, or ""."""
        active = self._supervisor.active.values()
        return next((a.job_id for a in active if _reads(a.request, folder)), "")

    def exporter_of(self, name: str) -> str:
        """Id of a job that exports a model of this name, or ""."""
        active = self._supervisor.active.values()
        exports = ((a.job_id, a.request.export) for a in active)
        return next((job_id for job_id, e in exports if e and e.model_name == name), "")


def _reads(request: JobRequest, folder: Path) -> bool:
    paths = [request.weights_path, request.training.initial_weights if request.training else ""]
    real = os.path.realpath(folder)
    return any(path and Path(os.path.realpath(path)).is_relative_to(real) for path in paths)


@dataclass(frozen=True)
class JobPage:
    """A page of a listing; ``next_token`` is "" on the last page."""

    jobs: list[Job]
    next_token: str


class Jobs:
    """All jobs of a data directory.

    Args:
        jobs_dir: the folder of all job folders.
        models_dir: where exported bundles go.
        store: the index.
        supervisor: runs active jobs.
        leases: of the devices.
        feeds: of the jobs' events.
        limits: of the queue.
        roots: folders that files named by a request must be in; None = no restriction.

    Attributes:
        references: what active jobs depend on.
    """

    def __init__(
        self,
        jobs_dir: Path,
        models_dir: Path,
        store: JobStore,
        supervisor: Supervisor,
        leases: Leases,
        feeds: EventFeeds,
        limits: QueueLimits,
        roots: tuple[Path, ...] | None = None,
    ) -> None:
        self._jobs_dir = jobs_dir
        self._limits = limits
        self._roots = roots
        self._models_dir = models_dir
        self._store = store
        self._supervisor = supervisor
        self._leases = leases
        self._feeds = feeds
        self.references = JobReferences(supervisor)
        self._submitting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def submit(
        self, submission: Submission, check: Callable[[], Awaitable[CheckedSpec]]
    ) -> Job:
        """Queues a job, once per request_id.

        Args:
            submission: the request.
            check: checks and resolves the specification; not called for a repeated request.

        Returns:
            The new job, or the one that the same request has created before.

        Raises:
            MultigrainError: ALREADY_EXISTS if the request_id was used for another request;
                OVERLOADED if too many jobs are queued; STORAGE; whatever ``check`` raises.
        """
        if not submission.request_id:
            return await self._create(submission, check)
        lock = self._submitting.setdefault(submission.request_id, asyncio.Lock())
        async with lock:
            first = self._store.by_request_id(submission.request_id)
            if first is None:
                return await self._create(submission, check)
        if first.job.request.body_sha256 != submission.body_sha256:
            raise MultigrainError(
                ErrorKind.ALREADY_EXISTS,
                f"request_id was used for another request, which created job {first.job.job_id}; "
                "choose a new request_id for a new job",
            )
        return self._current(first)

    async def _create(
        self, submission: Submission, check: Callable[[], Awaitable[CheckedSpec]]
    ) -> Job:
        with self._limits.place(submission.client):
            return await self._queue(submission, await check())

    async def _queue(self, submission: Submission, checked: CheckedSpec) -> Job:
        job_id, weights_path = new_job_id(submission.kind), checked.weights_path
        checkpoint = Path(weights_path) if checked.of_job else None
        own = JobFolder(self._jobs_dir / job_id).weights
        if checkpoint is not None:
            weights_path = str(own / checkpoint.name)
        elif checked.hub is not None:
            weights_path = str(own / checked.hub.file_name)
        request = JobRequest.model_validate(
            {
                "job_id": job_id,
                "kind": submission.kind,
                "name": submission.name,
                "labels": submission.labels,
                "request_id": submission.request_id,
                "body_sha256": submission.body_sha256,
                "create_time": utc_now(),
                "client": submission.client,
                checked.kind.value.lower(): checked.spec,
                "weights_path": weights_path,
                "hub_weights": str(checked.hub) if checked.hub is not None else "",
                "models_dir": str(self._models_dir) if checked.kind is JobKind.EXPORT else "",
                "warnings": checked.warnings,
                "preset_reason": checked.preset_reason,
                "train_path": checked.train_path,
                "val_path": checked.val_path,
            }
        )
        # Finished even if the client cancels: otherwise a job would be left that is not
        # supervised, or a retry with the same request_id would create a second one.
        entry = asyncio.create_task(self._enqueue(request, checkpoint, checked.held_out))
        try:
            return await asyncio.shield(entry)
        except asyncio.CancelledError:
            await asyncio.wait([entry])
            raise

    async def _enqueue(
        self, request: JobRequest, checkpoint: Path | None, held_out: Path | None
    ) -> Job:
        """Writes a job to disk and to the index, and starts supervising it."""
        message = self._queue_message(request, "queued")
        # In a thread, because it waits for the disk.
        folder = await asyncio.to_thread(
            create_folder, self._jobs_dir, request, message, checkpoint, held_out
        )
        feed = self._feeds.new(request.job_id)
        feed.poll()
        try:
            self._store.insert(request, feed.view, feed.offset)
        except (sqlite3.Error, MultigrainError) as error:
            # The client receives an error, so there must not be a job.
            shutil.rmtree(move_to_trash(folder), ignore_errors=True)
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the job cannot be added to the index ({error}); free up disk space in the data "
                "directory",
            ) from error
        active = ActiveJob(request, folder, feed)
        self._supervisor.add(active)
        _log.info("job queued", job_id=request.job_id, kind=request.kind.value)
        self._supervisor.schedule()
        return active.job()

    def _queue_message(self, request: JobRequest, default: str) -> str:
        """Why a job that is queued now has to wait; ``default`` if it does not."""
        devices = request.spec.devices
        busy = len(self._leases.free(devices.target)) < self._leases.needed(devices)
        return self._leases.explain(devices) if busy else default

    def get(self, job_id: str) -> Job:
        """Raises MultigrainError: INVALID_FIELD, NOT_FOUND."""
        return self._current(self._row(job_id))

    async def list(self, which: JobFilter, requested_size: int, token: str) -> JobPage:
        """A page of jobs, newest first.

        Raises:
            MultigrainError: INVALID_FIELD.
        """
        query = repr(which)
        after = PageToken.decode(token, query, (str, str))
        size = page_size(requested_size)
        rows = self._store.page(which, after, size + 1)
        jobs = [self._current(row) async for row in cooperative(rows)]
        more = ""
        if len(jobs) > size:
            last = jobs[size - 1]
            more = PageToken((last.request.create_time, last.job_id)).encode(query)
        return JobPage(jobs[:size], more)

    def cancel(self, job_id: str) -> Job:
        """Requests a job to stop. Repeating the request has no effect.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND; WRONG_STATE if it ended for another reason.
        """
        row = self._row(job_id)
        active = self._supervisor.active.get(job_id)
        if active is not None and not active.feed.view.state.terminal:
            self._supervisor.cancel(active)
            return active.job()
        job = self._current(row)
        if job.state is not JobState.CANCELLED and not row.job.cancel_requested:
            raise _wrong_state(job, "has already ended and cannot be canceled")
        return job

    async def resume(self, job_id: str) -> Job:
        """Queues a FAILED or CANCELLED job again.

        Raises:
            MultigrainError: INVALID_FIELD; NOT_FOUND; WRONG_STATE, also if the training set has
                changed; OVERLOADED if too many jobs are queued; UNAVAILABLE while processes of the
                last attempt are still exiting.
        """
        job = self._resumable(job_id)
        training_packages.require()
        folder = JobFolder(self._jobs_dir / job_id)
        if job.request.training is not None:
            await in_listing_thread(
                partial(check_resumable, job.request.training, folder, self._roots)
            )
            job = self._resumable(job_id)  # it may have been resumed or deleted meanwhile
        message = self._queue_message(job.request, "resumed")
        if job_id in self._supervisor.active:
            raise _still_exiting(job_id)
        with (
            self._limits.place(job.request.client),
            storage_errors("the job cannot be resumed", "the job's folder"),
        ):
            record = StateRecord(JobState.QUEUED, message)
            written = append_event(folder, record, job.view.attempt)
        if not written:
            raise _still_exiting(job_id)
        feed = self._feeds.take(job_id)
        feed.poll()
        active = ActiveJob(job.request, folder, feed)
        self._supervisor.add(active)
        self._supervisor.schedule()
        # Last: if the index cannot be written, the job runs anyway, and is saved a moment later.
        self._store.save_cancel(job_id, False)
        return active.job()

    def _resumable(self, job_id: str) -> Job:
        job = self._current(self._row(job_id))
        if job.state not in (JobState.FAILED, JobState.CANCELLED):
            raise _wrong_state(job, "cannot be resumed; only a FAILED or CANCELLED job can")
        self._leases.check(job.request.spec.devices)
        return job

    async def delete(self, job_id: str) -> None:
        """Deletes an ended job with its folder.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND; WRONG_STATE if it has not ended, or an
                active job reads its checkpoints; UNAVAILABLE as in ``resume``.
        """
        job = self._current(self._row(job_id))
        if not job.state.terminal:
            raise _wrong_state(job, "must end before it can be deleted; cancel it first")
        folder = JobFolder(self._jobs_dir / job_id)
        if job_id in self._supervisor.active:
            raise _still_exiting(job_id)
        reader = self.references.reader_of(folder.path)
        if reader:
            raise _wrong_state(job, f"is in use: job {reader} reads its checkpoints")
        # A folder that was deleted by hand leaves only the row of the index.
        with storage_errors("the job cannot be deleted", "jobs/ of the data directory"):
            trash = move_to_trash(folder) if folder.path.exists() else None
        self._store.delete(job_id)
        gone = MultigrainError(ErrorKind.NOT_FOUND, f"job {job_id} was deleted")
        self._feeds.drop(job_id, gone)
        if trash is not None:
            await to_thread_uncancellable(shutil.rmtree, trash, ignore_errors=True)

    def folder(self, job_id: str) -> JobFolder:
        """The folder of a job.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND.
        """
        self._row(job_id)
        return JobFolder(self._jobs_dir / job_id)

    def event_feed(self, job_id: str) -> EventFeed:
        """The feed to stream a job's events from.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND; UNAVAILABLE when the server stops.
        """
        self._row(job_id)
        return self._feeds.open(job_id)

    def _row(self, job_id: str) -> JobRow:
        row = self._store.get(check_job_id(job_id))
        if row is None:
            raise MultigrainError(ErrorKind.NOT_FOUND, f'no job "{job_id}"')
        return row

    def _current(self, row: JobRow) -> Job:
        """The job with its newest events, which may not be in the index yet."""
        active = self._supervisor.active.get(row.job.job_id)
        return active.job() if active is not None else row.job


def _wrong_state(job: Job, what: str) -> MultigrainError:
    return MultigrainError(ErrorKind.WRONG_STATE, f"job {job.job_id} is {job.state} and {what}")


def _still_exiting(job_id: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.UNAVAILABLE,
        f"the processes of job {job_id} are still exiting; retry in a moment",
        retry_after=1.0,
    )
