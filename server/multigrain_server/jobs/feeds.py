"""The feeds of all jobs: of active ones from the supervisor, of ended ones when asked for."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.folder import JobFolder
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.supervisor import Supervisor

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
