"""Which page is where."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from urllib.parse import parse_qs, unquote

from multigrain.errors import MultigrainError
from multigrain_server.jobs.job import Job
from multigrain_server.status import job_page, overview
from multigrain_server.status.curve import Curves
from multigrain_server.status.messages import newest
from multigrain_server.status.shell import document
from multigrain_server.status.snapshot import Sources, take

_JOBS = "/jobs/"


class StatusSite:
    """The pages of one daemon.

    State is read on the event loop, its owner; records of jobs in a thread, as they come from
    disk.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._started = time.monotonic()
        self._curves = Curves()
        # One reader of curves at a time: several would only repeat its work.
        self._reading = asyncio.Lock()

    async def page(self, path: str, query: str) -> str | None:
        """The HTML at ``path``; None if there is no such page."""
        live = parse_qs(query).get("live") != ["0"]
        if path == "/":
            return await self._overview(live)
        if path.startswith(_JOBS):
            return await self._job(unquote(path.removeprefix(_JOBS)), live)
        return None

    async def _overview(self, live: bool) -> str:
        snapshot = take(self._sources, self._started)
        paths = {
            job.job_id: self._sources.events_of(job.job_id)
            for job in (*snapshot.active, *snapshot.ended)
        }
        async with self._reading:
            curves = await asyncio.to_thread(
                lambda: {job_id: self._curves.of(path) for job_id, path in paths.items()}
            )
        body = overview.render(snapshot, curves, datetime.now(UTC))
        return document("multigrain", body, path="/", live=live)

    async def _job(self, job_id: str, live: bool) -> str | None:
        try:
            job: Job = self._sources.jobs.get(job_id)
        except MultigrainError:
            return None
        events = self._sources.events_of(job_id)
        async with self._reading:
            points = await asyncio.to_thread(self._curves.of, events)
        messages = await asyncio.to_thread(newest, events)
        body = job_page.render(job, points, messages, datetime.now(UTC))
        title = f"{job.request.name or job_id} · multigrain"
        return document(title, body, path=f"{_JOBS}{job_id}", live=live)
