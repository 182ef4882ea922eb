"""What a daemon does about the jobs it finds when it starts."""

from __future__ import annotations

from pathlib import Path

import structlog

from multigrain.jobs.folder import JobFolder
from multigrain.jobs.request import JobRequest
from multigrain_server.jobs.active import ActiveJob
from multigrain_server.jobs.creation import remove_leftovers
from multigrain_server.jobs.feeds import Feeds
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.supervisor import Supervisor

_log = structlog.get_logger(__name__)


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
        covered = self._store.covered()
        found = {path.name for path in self._jobs_dir.iterdir() if path.is_dir()}
        for job_id in sorted(covered.keys() - found):
            _log.warning("job's folder is gone; dropped from the index", job_id=job_id)
            self._store.delete(job_id)
        for job_id in sorted(found - covered.keys()):
            self._index(job_id)
        # Again, with those: a folder that was not in the index may be of a job that runs. In
        # the order of their creation, which is that of the queue.
        for job_id, known in self._store.covered().items():
            if not known.ended or self._events_bytes(job_id) != known.events_bytes:
                self._take(job_id)

    def _index(self, job_id: str) -> None:
        folder = JobFolder(self._jobs_dir / job_id)
        try:
            request = JobRequest.load(folder.spec)
            if request.job_id != job_id:
                raise ValueError(f"spec.json belongs to job {request.job_id}")
        except (OSError, ValueError) as error:
            _log.error("folder is not a job; left alone", folder=job_id, reason=str(error)[:500])
            return
        if request.request_id and self._store.by_request_id(request.request_id):
            # A copied folder, say. The key stays with the job that has it.
            request = request.model_copy(update={"request_id": ""})
        feed = self._feeds.new(job_id)
        feed.poll()
        self._store.insert(request, feed.view, feed.offset)
        _log.info("job indexed from its folder", job_id=job_id, state=feed.view.state.value)

    def _events_bytes(self, job_id: str) -> int:
        try:
            return JobFolder(self._jobs_dir / job_id).events.stat().st_size
        except FileNotFoundError:
            return 0

    def _take(self, job_id: str) -> None:
        row = self._store.get(job_id)
        if row is None:
            return
        job = row.job
        folder = JobFolder(self._jobs_dir / job_id)
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
