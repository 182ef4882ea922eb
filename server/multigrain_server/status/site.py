"""The pages, rendered from templates."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from multigrain.errors import MultigrainError
from multigrain.jobs.job_request import JobRequest
from multigrain_server.file_threads import read_files
from multigrain_server.jobs.job import Job
from multigrain_server.shared_page import PageThread, SharedPage
from multigrain_server.status import formatting
from multigrain_server.status.chart import chart, sparkline
from multigrain_server.status.event_log import Curves, latest_warnings
from multigrain_server.status.snapshot import Sources, take

REFRESH_SECONDS = 5
_READ_SECONDS = 10.0

T = TypeVar("T")

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "style.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: No scripts, frames or forms, and nothing from elsewhere: an injected element would do nothing.
SECURITY_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class StatusSite:
    """The pages of one daemon.

    State is read on the event loop, which owns it; event logs in a thread, as they are on disk.
    Pages are rendered in a thread too: that takes longer than calls should wait.

    Args:
        sources: what the pages show.
        thread: renders them.
    """

    def __init__(self, sources: Sources, thread: PageThread) -> None:
        self._sources = sources
        self._thread = thread
        self._overviews = {
            live: SharedPage(partial(self._render_overview, live=live)) for live in (True, False)
        }
        self._curves = Curves()
        # One reader of curves at a time: several would only repeat its work.
        self._reading = asyncio.Lock()

    async def overview(self, *, live: bool) -> str:
        """The HTML of the first page; ``live`` = it reloads itself every REFRESH_SECONDS."""
        return await self._overviews[live].get()

    async def _render_overview(self, *, live: bool) -> str:
        snapshot = await take(self._sources)
        paths = {
            job.job_id: self._sources.events_of(job.job_id)
            for job in (*snapshot.active, *snapshot.ended)
        }
        curves = await self._read(
            lambda: {job_id: self._curves.of(path) for job_id, path in paths.items()}
        ) or dict.fromkeys(paths, ())
        return await self._thread.run(
            partial(render, "overview", "/", live=live, snapshot=snapshot, curves=curves)
        )

    async def job(self, job_id: str, *, live: bool) -> str | None:
        """The HTML of a job's page; None if there is no such job."""
        try:
            job = self._sources.jobs.get(job_id)
        except MultigrainError:
            return None
        events = self._sources.events_of(job_id)
        points = await self._read(partial(self._curves.of, events)) or ()
        warnings = await self._read(partial(latest_warnings, events)) or ()
        page = partial(render, "job", job_path(job_id), live=live)
        return await self._thread.run(partial(page, job=job, points=points, warnings=warnings))

    async def _read(self, function: Callable[[], T]) -> T | None:
        """The result of a function that reads event logs; without it, a page shows no curves."""
        async with self._reading:
            try:
                return await read_files(function, place="status", seconds=_READ_SECONDS)
            except MultigrainError:  # the disk does not answer; it is logged
                return None


def render(template: str, path: str, *, live: bool, **values: object) -> str:
    """A whole page.

    Args:
        template: name of a file in ``templates``, without ``.html.j2``.
        path: of the page, for the link that stops or starts its reloading.
        live: whether it reloads itself every REFRESH_SECONDS.
        values: what the template shows.
    """
    page = _environment().get_template(f"{template}.html.j2")
    return page.render(path=path, live=live, now=datetime.now(UTC), **values)


def job_path(job_id: str) -> str:
    """The path of a job's page."""
    return f"/jobs/{quote(job_id, safe='')}"


def outcome(job: Job) -> str:
    """The result of a job that ended: error, model or metrics."""
    view = job.view
    if view.error is not None:
        return f"{view.error.kind}: {view.error.message}"
    if view.artifact is not None:
        return f"{view.artifact.model_name}@{view.artifact.model_version}"
    metrics = [f"{name} {formatting.number(v)}" for name, v in list(view.metrics.items())[:3]]
    if not metrics and view.last_loss is not None:
        return f"loss {formatting.number(view.last_loss.loss)}"
    return ", ".join(metrics)


def labels(request: JobRequest) -> str:
    """The first 50 labels of a job as key=value pairs."""
    return ", ".join(f"{key}={value}" for key, value in sorted(request.labels.items())[:50])


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        auto_reload=False,
        finalize=formatting.printable,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        chart=chart,
        sparkline=sparkline,
        outcome=outcome,
        labels=labels,
        job_path=job_path,
        style=Markup(_STYLE),
        refresh_seconds=REFRESH_SECONDS,
    )
    for function in (
        formatting.ago,
        formatting.count,
        formatting.duration,
        formatting.milliseconds,
        formatting.number,
        formatting.shorten,
        formatting.size,
    ):
        environment.filters[function.__name__] = function
    return environment
