"""The pages, rendered from templates."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from multigrain.errors import MultigrainError
from multigrain.events.records import EvaluationRecord, JobState
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.request_fields import check_filter
from multigrain_server.file_threads import read_files
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.store import JobFilter
from multigrain_server.shared_page import PageThread, SharedPage
from multigrain_server.status import formatting
from multigrain_server.status.chart import (
    chart,
    comparison_charts,
    confusion,
    run_charts,
    sparkline,
)
from multigrain_server.status.event_log import (
    CurvePoint,
    Curves,
    Evaluations,
    Message,
    latest_warnings,
)
from multigrain_server.status.results import LogTail, ResultFiles, Results, log_tails
from multigrain_server.status.settings import differences, settings
from multigrain_server.status.snapshot import Sources, take

REFRESH_SECONDS = 5
RUNS = 25
"""Jobs on a page of the table of all jobs."""

FEWEST, MOST = 2, 6
"""Runs in a comparison."""

_READ_SECONDS = 10.0

T = TypeVar("T")

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "style.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_SCRIPT = (_FOLDER / "try.js").read_text()
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()

#: No scripts and frames, and nothing from elsewhere: an injected element would do nothing. Forms
#: only lead to these pages, none of which changes anything. Pictures are in the page itself.
SECURITY_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

#: Of the page that sends a picture to this daemon and shows it.
TRY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; script-src 'sha256-{_SCRIPT_HASH}'; "
    "connect-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Page:
    """The status of a response, the HTML, and its policy if it is not the usual one."""

    status: int
    html: str
    policy: str = ""


@dataclass(frozen=True)
class RunQuery:
    """The filters of the table of all jobs, as its form sends them; "" matches all.

    Attributes:
        state: name of a state.
        kind: name of a kind of job.
        label: "key=value".
        name: part of the name.
        page: token of the page; "" = the first one.
    """

    state: str = ""
    kind: str = ""
    label: str = ""
    name: str = ""
    page: str = ""

    @property
    def filter(self) -> JobFilter:
        """The filter of the listing.

        Raises:
            MultigrainError: INVALID_FIELD.
        """
        states, kinds = tuple(JobState), tuple(JobKind)
        if self.state and self.state not in states:
            raise MultigrainError.field("state", f"choose one of {', '.join(states).lower()}")
        if self.kind and self.kind not in kinds:
            raise MultigrainError.field("kind", f"choose one of {', '.join(kinds).lower()}")
        key, equals, value = self.label.partition("=")
        if self.label and not (equals and key):
            raise MultigrainError.field("label", "give KEY=VALUE, such as team=search")
        labels = {key: value} if self.label else {}
        check_filter(self.name, labels)
        return JobFilter(
            states=(self.state,) if self.state else (),
            kinds=(self.kind,) if self.kind else (),
            labels=tuple(labels.items()),
            name_contains=self.name,
        )

    @property
    def filtered(self) -> bool:
        return bool(self.state or self.kind or self.label or self.name)

    def path(self, page: str) -> str:
        """The path of another page of the same table."""
        fields = {**vars(self), "page": page}
        return f"/jobs?{urlencode({key: value for key, value in fields.items() if value})}"


@dataclass(frozen=True)
class _Run:
    """What a job's page reads from its folder."""

    points: tuple[CurvePoint, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()
    results: Results | None = None
    logs: tuple[LogTail, ...] = ()
    warnings: tuple[Message, ...] = ()


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
        self._evaluations = Evaluations()
        self._results = ResultFiles()
        # One reader of curves at a time: several would only repeat its work.
        self._reading = asyncio.Lock()

    async def overview(self, *, live: bool) -> str:
        """The HTML of the first page; ``live`` = it reloads itself every REFRESH_SECONDS."""
        return await self._overviews[live].get()

    async def _render_overview(self, *, live: bool) -> str:
        snapshot = await take(self._sources)
        paths = {
            job.job_id: self._sources.folder_of(job.job_id).events
            for job in (*snapshot.active, *snapshot.ended)
        }
        curves = await self._read(
            lambda: {job_id: self._curves.of(path) for job_id, path in paths.items()}
        ) or dict.fromkeys(paths, ())
        return await self._thread.run(
            partial(render, "overview", "/", live=live, snapshot=snapshot, curves=curves)
        )

    async def runs(self, query: RunQuery) -> Page:
        """A page of the table of all jobs, newest first."""
        error, jobs, more = "", list[Job](), ""
        try:
            found = await self._sources.jobs.list(query.filter, RUNS, query.page)
            jobs, more = found.jobs, found.next_token
        except MultigrainError as refused:
            error = refused.message
        page = partial(
            render, "runs", "/jobs", live=False, jobs=jobs, more=more, query=query, error=error
        )
        return Page(400 if error else 200, await self._thread.run(page))

    async def job(self, job_id: str, *, live: bool) -> Page:
        """The page of a job."""
        try:
            job = self._sources.jobs.get(job_id)
        except MultigrainError as error:
            return await self._missing(error.message)
        folder = self._sources.folder_of(job_id)
        read = await self._read(partial(self._run, job.request, folder)) or _Run()
        # What has ended does not change.
        live = live and not job.state.terminal
        page = partial(render, "job", job_path(job_id), live=live, job=job, run=read)
        return Page(200, await self._thread.run(page))

    async def compare(self, job_ids: Sequence[str]) -> Page:
        """Runs beside each other."""
        job_ids = list(dict.fromkeys(job_ids))
        if not FEWEST <= len(job_ids) <= MOST:
            return await self._missing(
                f"a comparison has {FEWEST} to {MOST} runs, not {len(job_ids)}: choose them in "
                "the table of all jobs",
                status=400,
            )
        try:
            jobs = [self._sources.jobs.get(job_id) for job_id in job_ids]
        except MultigrainError as error:
            return await self._missing(error.message)
        paths = [self._sources.folder_of(job_id).events for job_id in job_ids]
        read = await self._read(
            lambda: [(self._curves.of(path), self._evaluations.of(path)) for path in paths]
        ) or [((), ())] * len(paths)
        page = partial(
            render,
            "compare",
            "/compare",
            live=False,
            jobs=jobs,
            points=[points for points, _ in read],
            evaluations=[evaluations for _, evaluations in read],
        )
        return Page(200, await self._thread.run(page))

    async def picture(self) -> Page:
        """The page on which a picture is dropped; its script calls the HTTP API."""
        page = partial(render, "try", "/try", live=False, script=Markup(_SCRIPT))
        return Page(200, await self._thread.run(page), TRY_POLICY)

    async def _missing(self, message: str, status: int = 404) -> Page:
        page = partial(render, "missing", "/jobs", live=False, message=message)
        return Page(status, await self._thread.run(page))

    def _run(self, request: JobRequest, folder: JobFolder) -> _Run:
        return _Run(
            self._curves.of(folder.events),
            self._evaluations.of(folder.events),
            self._results.of(request, folder),
            log_tails(folder),
            latest_warnings(folder.events),
        )

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
        comparison_charts=comparison_charts,
        confusion=confusion,
        differences=differences,
        kinds=[kind.value for kind in JobKind],
        run_charts=run_charts,
        settings=settings,
        states=[state.value for state in JobState],
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
        formatting.elapsed,
        formatting.milliseconds,
        formatting.number,
        formatting.shorten,
        formatting.size,
    ):
        environment.filters[function.__name__] = function
    return environment
