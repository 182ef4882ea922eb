"""The feeds of all jobs: of active ones from the supervisor, of ended ones when asked for."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import utc_now
from multigrain.events.records import JobState, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain_server.asyncio_utils import in_turns, to_the_end
from multigrain_server.devices import Leases
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.files import (
    append,
    check_job_id,
    create_folder,
    move_to_trash,
    new_job_id,
)
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.references import Needs
from multigrain_server.jobs.store import JobFilter, JobRow, JobStore
from multigrain_server.jobs.submission import CheckedSpec, Submission, check_resumable
from multigrain_server.jobs.supervisor import ActiveJob, Supervisor
from multigrain_server.paging import PageToken, page_size
from multigrain_server.storage_errors import stored

_KEPT = 32


class Feeds:
    """Opens feeds and keeps those of ended jobs for a while: who followed to the end is likely
    to ask again.

    Args:
        jobs_dir: the folder of job folders.
        supervisor: knows the active jobs.
        heartbeat_seconds: of the streams.
    """

    def __init__(self, jobs_dir: Path, supervisor: Supervisor, heartbeat_seconds: float) -> None:
        self._jobs_dir = jobs_dir
        self._supervisor = supervisor
        self._heartbeat_seconds = heartbeat_seconds
        self._ended: OrderedDict[str, EventFeed] = OrderedDict()
        self._closed: MultigrainError | None = None

    def new(self, job_id: str) -> EventFeed:
        """A feed of its own, with nothing taken in yet."""
        path = JobFolder(self._jobs_dir / job_id).events
        return EventFeed(job_id, path, self._heartbeat_seconds)

    def open(self, job_id: str) -> EventFeed:
        """The feed that all readers of a job share.

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
        """Keeps the feed of a job that has just ended."""
        self._ended[feed.job_id] = feed
        idle = [job_id for job_id, kept in self._ended.items() if not kept.subscribers]
        for job_id in idle[: max(0, len(self._ended) - _KEPT)]:
            if job_id != feed.job_id:
                del self._ended[job_id]

    def take(self, job_id: str) -> EventFeed:
        """The feed of an ended job that becomes active again; its readers go with it."""
        return self._ended.pop(job_id, None) or self.new(job_id)

    def drop(self, job_id: str, reason: MultigrainError) -> None:
        """Ends the streams of a job that was deleted."""
        feed = self._ended.pop(job_id, None)
        if feed is not None:
            feed.close(reason)

    def close(self) -> None:
        """Ends every stream with UNAVAILABLE: clients go on from their last seq elsewhere."""
        self._closed = MultigrainError(
            ErrorKind.UNAVAILABLE,
            "the server is shutting down; go on from the last seq when it is back",
            retry_after=1.0,
        )
        for feed in [a.feed for a in self._supervisor.active.values()] + [*self._ended.values()]:
            feed.close(self._closed)

    @property
    def subscribers(self) -> int:
        """Open streams."""
        feeds = [active.feed for active in self._supervisor.active.values()]
        return sum(feed.subscribers for feed in [*feeds, *self._ended.values()])


# MERGED: What can be done with jobs: submit, look, list, follow, cancel, resume, delete.


_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class JobPage:
    """A page of a listing; ``next_token`` "" means that there is no further one."""

    jobs: list[Job]
    next_token: str


class Jobs:
    """All jobs of a data directory.

    Args:
        jobs_dir, models_dir: where job folders and exported bundles go.
        store, supervisor, leases, feeds: the parts.
    """

    def __init__(
        self,
        jobs_dir: Path,
        models_dir: Path,
        store: JobStore,
        supervisor: Supervisor,
        leases: Leases,
        feeds: Feeds,
    ) -> None:
        self._jobs_dir = jobs_dir
        self._models_dir = models_dir
        self._store = store
        self._supervisor = supervisor
        self._leases = leases
        self._feeds = feeds
        self.needs = Needs(supervisor)
        self._submitting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def submit(
        self, submission: Submission, check: Callable[[], Awaitable[CheckedSpec]]
    ) -> Job:
        """Queues a job, once for each request_id.

        Args:
            submission: who asks for what, checked already.
            check: resolves the specification; not called for a repeated request.

        Raises:
            MultigrainError: ALREADY_EXISTS if the request_id was used for another request;
                what ``check`` raises; STORAGE.
        """
        if not submission.request_id:
            return await self._create(submission, await check())
        lock = self._submitting.setdefault(submission.request_id, asyncio.Lock())
        async with lock:
            first = self._store.by_request_id(submission.request_id)
            if first is None:
                return await self._create(submission, await check())
        if first.job.request.body_sha256 != submission.body_sha256:
            raise MultigrainError(
                ErrorKind.ALREADY_EXISTS,
                f"request_id was used for another request, which made job {first.job.job_id}; "
                "choose a new request_id for a new job",
            )
        return self._fresh(first)

    async def _create(self, submission: Submission, checked: CheckedSpec) -> Job:
        job_id, weights_path = new_job_id(submission.kind), checked.weights_path
        checkpoint = Path(weights_path) if checked.of_job else None
        if checkpoint is not None:
            weights_path = str(JobFolder(self._jobs_dir / job_id).weights / checkpoint.name)
        request = JobRequest.model_validate(
            {
                "job_id": job_id,
                "kind": submission.kind,
                "name": submission.name,
                "labels": submission.labels,
                "request_id": submission.request_id,
                "body_sha256": submission.body_sha256,
                "create_time": utc_now(),
                checked.kind.value.lower(): checked.spec,
                "weights_path": weights_path,
                "models_dir": str(self._models_dir) if checked.kind is JobKind.EXPORT else "",
            }
        )
        # A caller that goes away meanwhile must not leave a job that nobody looks after, nor
        # its request_id free for a second one: what has begun is finished first.
        entry = asyncio.create_task(self._enter(request, checkpoint))
        try:
            return await asyncio.shield(entry)
        except asyncio.CancelledError:
            await asyncio.wait([entry])
            raise

    async def _enter(self, request: JobRequest, checkpoint: Path | None) -> Job:
        """Writes a job to disk and to the index, and has it run."""
        message = self._queue_message(request, "queued")
        # In a thread: it waits for the disk.
        folder = await asyncio.to_thread(
            create_folder, self._jobs_dir, request, message, checkpoint
        )
        feed = self._feeds.new(request.job_id)
        feed.poll()
        try:
            self._store.insert(request, feed.view, feed.offset)
        except (sqlite3.Error, MultigrainError) as error:
            # The caller is told that there is no job, so there must not be one.
            shutil.rmtree(move_to_trash(folder), ignore_errors=True)
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the job cannot be entered in the index ({error}); make room on the disk of the "
                "data directory",
            ) from error
        active = ActiveJob(request, folder, feed)
        self._supervisor.add(active)
        _log.info("job queued", job_id=request.job_id, kind=request.kind.value)
        self._supervisor.schedule()
        return active.job()

    def _queue_message(self, request: JobRequest, otherwise: str) -> str:
        """Why a job that is queued now has to wait, if it has to."""
        devices = request.spec.devices
        busy = len(self._leases.free(devices.target)) < self._leases.needed(devices)
        return self._leases.explain(devices) if busy else otherwise

    def get(self, job_id: str) -> Job:
        """Raises MultigrainError: INVALID_FIELD, NOT_FOUND."""
        return self._fresh(self._row(job_id))

    async def list(self, which: JobFilter, asked_size: int, token: str) -> JobPage:
        """A page, newest first.

        Raises:
            MultigrainError: INVALID_FIELD.
        """
        query = repr(which)
        after = PageToken.decode(token, query, (str, str))
        size = page_size(asked_size)
        rows = self._store.page(which, after, size + 1)
        jobs = [self._fresh(row) async for row in in_turns(rows)]
        more = ""
        if len(jobs) > size:
            last = jobs[size - 1]
            more = PageToken((last.request.create_time, last.job_id)).encode(query)
        return JobPage(jobs[:size], more)

    def cancel(self, job_id: str) -> Job:
        """Asks a job to end. Harmless when repeated.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND; WRONG_STATE if it ended by itself.
        """
        row = self._row(job_id)
        active = self._supervisor.active.get(job_id)
        if active is not None and not active.feed.view.state.terminal:
            self._supervisor.cancel(active)
            return active.job()
        job = self._fresh(row)
        if job.state is not JobState.CANCELLED and not row.job.cancel_requested:
            raise _wrong_state(job, "has already ended and cannot be cancelled")
        return job

    async def resume(self, job_id: str) -> Job:
        """Queues a FAILED or CANCELLED job again.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE, also where the training set
                has changed; UNAVAILABLE while the processes of the ended attempt are still there.
        """
        job = self._resumable(job_id)
        folder = JobFolder(self._jobs_dir / job_id)
        if job.request.training is not None:
            await asyncio.to_thread(check_resumable, job.request.training, folder)
            job = self._resumable(job_id)  # somebody may have resumed or deleted it meanwhile
        message = self._queue_message(job.request, "resumed")
        if job_id in self._supervisor.active:
            raise _still_ending(job_id)
        with stored("the job cannot be resumed", "the job's folder"):
            noted = append(folder, StateRecord(JobState.QUEUED, message), job.view.attempt)
        if not noted:
            raise _still_ending(job_id)
        feed = self._feeds.take(job_id)
        feed.poll()
        active = ActiveJob(job.request, folder, feed)
        self._supervisor.add(active)
        self._supervisor.schedule()
        # Last: should the index refuse it, the job runs all the same, and is noted a moment later.
        self._store.save_cancel(job_id, False)
        return active.job()

    def _resumable(self, job_id: str) -> Job:
        job = self._fresh(self._row(job_id))
        if job.state not in (JobState.FAILED, JobState.CANCELLED):
            raise _wrong_state(job, "cannot be resumed; only a FAILED or CANCELLED job can")
        self._leases.check(job.request.spec.devices)
        return job

    async def delete(self, job_id: str) -> None:
        """Removes an ended job from disk.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND; WRONG_STATE if it has not ended, or an
                active job reads its checkpoints; UNAVAILABLE as in ``resume``.
        """
        job = self._fresh(self._row(job_id))
        if not job.state.terminal:
            raise _wrong_state(job, "must end before it can be deleted; cancel it first")
        folder = JobFolder(self._jobs_dir / job_id)
        if job_id in self._supervisor.active:
            raise _still_ending(job_id)
        reader = self.needs.reader_of(folder.path)
        if reader:
            raise _wrong_state(job, f"is in use: job {reader} reads its checkpoints")
        # Without a folder somebody removed it by hand, and the index is all that is left.
        with stored("the job cannot be deleted", "jobs/ of the data directory"):
            trash = move_to_trash(folder) if folder.path.exists() else None
        self._store.delete(job_id)
        gone = MultigrainError(ErrorKind.NOT_FOUND, f"job {job_id} was deleted")
        self._feeds.drop(job_id, gone)
        if trash is not None:
            await to_the_end(shutil.rmtree, trash, ignore_errors=True)

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

    def _fresh(self, row: JobRow) -> Job:
        """The job with the newest events, which the index may not have yet."""
        active = self._supervisor.active.get(row.job.job_id)
        return active.job() if active is not None else row.job


def _wrong_state(job: Job, what: str) -> MultigrainError:
    return MultigrainError(ErrorKind.WRONG_STATE, f"job {job.job_id} is {job.state} and {what}")


def _still_ending(job_id: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.UNAVAILABLE,
        f"the processes of job {job_id} are still ending; try again in a moment",
        retry_after=1.0,
    )
