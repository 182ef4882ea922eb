"""What a daemon does about the jobs it finds when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import structlog

from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.files import load_cancel, remove_leftovers
from multigrain_server.jobs.service import Feeds
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.supervisor import ActiveJob, Supervisor

_log = structlog.get_logger(__name__)


@dataclass
class Indexing:
    """What the folders had that the index had not.

    Attributes:
        added: jobs that were entered.
        dropped: jobs whose folders are gone.
        refused: folder -> why it is not a job's; left alone.
    """

    added: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def index_folders(jobs_dir: Path, store: JobStore) -> Indexing:
    """Enters every job folder that is not in the index, and drops what has no folder.

    Raises:
        MultigrainError: STORAGE, if the index cannot be written.
    """
    done = Indexing()
    known = store.covered().keys()
    found = {path.name for path in jobs_dir.iterdir() if path.is_dir()}
    with store.transaction():  # one wait for the disk, not one for each job
        for job_id in sorted(known - found):
            _log.warning("job's folder is gone; dropped from the index", job_id=job_id)
            store.delete(job_id)
            done.dropped.append(job_id)
        for job_id in sorted(found - known):
            try:
                state = _index(JobFolder(jobs_dir / job_id), store)
            except (OSError, ValueError) as error:
                reason = str(error)[:500]
                done.refused[job_id] = reason
                _log.error("folder is not a job; left alone", folder=job_id, reason=reason)
                continue
            done.added.append(job_id)
            _log.info("job indexed from its folder", job_id=job_id, state=state)
    return done


def _index(folder: JobFolder, store: JobStore) -> str:
    """Enters one job; returns its state.

    Raises:
        OSError, ValueError: if it is not a job.
    """
    request = JobRequest.load(folder.spec)
    if request.job_id != folder.job_id:
        raise ValueError(f"spec.json belongs to job {request.job_id}")
    if request.request_id and store.by_request_id(request.request_id):
        # A copied folder, say. The key stays with the job that has it.
        request = request.model_copy(update={"request_id": ""})
    feed = EventFeed(folder.job_id, folder.events)
    feed.poll()
    store.insert(request, feed.view, feed.offset)
    if load_cancel(folder, feed.view.queued_time):
        store.save_cancel(folder.job_id, True)
    return feed.view.state.value


class Recovery:
    """Brings the index in line with the folders, and hands active jobs to the supervisor.

    Only jobs that had not ended, and those whose events grew since the index was written,
    are read; the start does not get slower with the number of ended jobs.
    """

    def __init__(
        self, jobs_dir: Path, store: JobStore, supervisor: Supervisor, feeds: Feeds
    ) -> None:
        self._jobs_dir = jobs_dir
        self._store = store
        self._supervisor = supervisor
        self._feeds = feeds

    def run(self) -> None:
        remove_leftovers(self._jobs_dir)
        index_folders(self._jobs_dir, self._store)
        # All of them: a folder that was not in the index may be of a job that runs. In the order
        # of their creation, which is that of the queue.
        for job_id, known in self._store.covered().items():
            try:
                if not known.ended or self._events_bytes(job_id) != known.events_bytes:
                    self._take(job_id)
            except OSError as error:  # one job's folder must not keep the daemon from starting
                _log.error("job unreadable; left alone", job_id=job_id, reason=str(error))

    def _events_bytes(self, job_id: str) -> int:
        try:
            return JobFolder(self._jobs_dir / job_id).events.stat().st_size
        except FileNotFoundError:
            return 0

    def _take(self, job_id: str) -> None:
        folder = JobFolder(self._jobs_dir / job_id)
        try:
            row = self._store.get(job_id)
        except ValueError as error:
            _log.error("row unreadable; indexed anew", job_id=job_id, reason=str(error)[:500])
            self._store.delete(job_id)
            index_folders(self._jobs_dir, self._store)
            row = self._store.get(job_id)
        if row is None:
            return
        job = row.job
        feed = self._feeds.new(job.job_id)
        feed.poll()
        self._store.save_view(job.job_id, feed.view, feed.offset)
        if feed.view.state.terminal:
            return
        cancel = job.cancel_requested
        if cancel and job.view.state.terminal:
            # Resumed by a daemon that died before it could forget the request to cancel.
            cancel = False
            self._store.save_cancel(job.job_id, False)
        active = ActiveJob(job.request, folder, feed, cancel_requested=cancel)
        self._supervisor.add(active)
