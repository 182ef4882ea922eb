"""Recovery of jobs when the daemon starts, and of the index from the job folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import structlog

from multigrain.errors import MultigrainError
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.files import load_cancel, remove_leftovers
from multigrain_server.jobs.service import EventFeeds
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.supervisor import ActiveJob, Supervisor

_log = structlog.get_logger(__name__)


@dataclass
class IndexReport:
    """Changes that ``index_folders`` made to the index.

    Attributes:
        added: ids of jobs that were added.
        dropped: ids of jobs whose folders no longer exist.
        skipped: folder -> why it is not the folder of a job.
    """

    added: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def index_folders(jobs_dir: Path, store: JobStore) -> IndexReport:
    """Adds every job folder that is not in the index, and drops jobs that have no folder.

    Raises:
        MultigrainError: STORAGE, if the index cannot be written.
    """
    report = IndexReport()
    known = store.indexed().keys()
    found = {path.name for path in jobs_dir.iterdir() if path.is_dir()}
    with store.transaction():  # one sync of the disk instead of one per job
        for job_id in sorted(known - found):
            _log.warning("job folder is gone; dropped from the index", job_id=job_id)
            store.delete(job_id)
            report.dropped.append(job_id)
        for job_id in sorted(found - known):
            try:
                state = _index(JobFolder(jobs_dir / job_id), store)
            except (OSError, ValueError, MultigrainError) as error:
                reason = str(error)[:500]
                report.skipped[job_id] = reason
                _log.error("folder is not a job; skipped", folder=job_id, reason=reason)
                continue
            report.added.append(job_id)
            _log.info("job indexed from its folder", job_id=job_id, state=state)
    return report


def _index(folder: JobFolder, store: JobStore) -> str:
    """Adds one job; returns its state.

    Raises:
        OSError, ValueError, MultigrainError: if it is not a job.
    """
    request = JobRequest.load(folder.spec)
    if request.job_id != folder.job_id:
        raise ValueError(f"spec.json belongs to job {request.job_id}")
    if request.request_id and store.by_request_id(request.request_id):
        # A copied folder, for example. The key remains with the job that is indexed already.
        request = request.model_copy(update={"request_id": ""})
    feed = EventFeed(folder.job_id, folder.events)
    feed.poll()
    store.insert(request, feed.view, feed.offset)
    if load_cancel(folder, feed.view.queued_time):
        store.save_cancel(folder.job_id, True)
    return feed.view.state.value


class Recovery:
    """Updates the index from the job folders, and adds active jobs to the supervisor.

    Reads only jobs that had not ended, and those whose event logs have grown since the index was
    written: the start does not take longer with the number of ended jobs.
    """

    def __init__(
        self, jobs_dir: Path, store: JobStore, supervisor: Supervisor, feeds: EventFeeds
    ) -> None:
        self._jobs_dir = jobs_dir
        self._store = store
        self._supervisor = supervisor
        self._feeds = feeds

    def run(self) -> None:
        remove_leftovers(self._jobs_dir)
        index_folders(self._jobs_dir, self._store)
        # Including those just added, which may be running. In the order of their creation, which
        # is the order of the queue.
        for job_id, known in self._store.indexed().items():
            try:
                if not known.ended or self._events_bytes(job_id) != known.events_bytes:
                    self._recover(job_id)
            except (OSError, MultigrainError) as error:
                # One unreadable folder must not prevent the start.
                _log.error("job unreadable; skipped", job_id=job_id, reason=str(error))

    def _events_bytes(self, job_id: str) -> int:
        try:
            return JobFolder(self._jobs_dir / job_id).events.stat().st_size
        except FileNotFoundError:
            return 0

    def _recover(self, job_id: str) -> None:
        folder = JobFolder(self._jobs_dir / job_id)
        try:
            row = self._store.get(job_id)
        except ValueError as error:
            _log.error(
                "index row unreadable; reindexing the job", job_id=job_id, reason=str(error)[:500]
            )
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
            # The daemon died while it resumed the job, before it had cleared the cancel request.
            cancel = False
            self._store.save_cancel(job.job_id, False)
        active = ActiveJob(job.request, folder, feed, cancel_requested=cancel)
        self._supervisor.add(active)
