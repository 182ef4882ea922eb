"""The page of one job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from multigrain_server.jobs.job import Job
from multigrain_server.status.chart import chart
from multigrain_server.status.curve import CurvePoint
from multigrain_server.status.job_card import progress_bar, running_facts
from multigrain_server.status.markup import Child, Markup, element, join
from multigrain_server.status.messages import Message
from multigrain_server.status.parts import badge, columns, facts, section, shortened, table
from multigrain_server.status.words import ago, figure, size

_LONG = 4000
_LABELS = 50
_METRICS = 100


def render(
    job: Job, points: Sequence[CurvePoint], messages: Sequence[Message], now: datetime
) -> Markup:
    """The body of the page."""
    return join(
        element(
            "header",
            element("h1", element("a", "multigrain", href="/")),
            element("p", badge(job.state.value), role="status"),
        ),
        element(
            "main",
            element("h2", shortened(job.request.name or job.job_id)),
            element(
                "div",
                _origin(job, now),
                progress_bar(job),
                running_facts(job),
                element("p", shortened(job.state_message, _LONG)) if job.state_message else None,
                _error(job),
                class_="panel",
            ),
            section("Loss", element("div", chart(points), class_="panel")) if points else None,
            _figures(job),
            _checkpoints(job, now),
            _messages(messages, now),
        ),
    )


def _origin(job: Job, now: datetime) -> Markup:
    view, request = job.view, job.request
    labels = [f"{key}={value}" for key, value in sorted(request.labels.items())[:_LABELS]]
    artifact = view.artifact
    pairs: list[tuple[str, Child]] = [
        ("id", job.job_id),
        ("kind", request.kind.lower()),
        ("created", ago(request.create_time, now)),
        ("started", ago(view.start_time, now)),
        ("ended", ago(view.end_time, now)),
        ("exit code", view.exit_code),
        ("labels", shortened(", ".join(labels), 1000)),
        ("model", f"{artifact.model_name}@{artifact.model_version}" if artifact else ""),
    ]
    return facts(pairs)


def _error(job: Job) -> Markup | None:
    error = job.view.error
    if error is None:
        return None
    rank = f" (rank {error.rank})" if error.rank is not None else ""
    return element(
        "div",
        element("p", element("b", error.kind), f"{rank}: {shortened(error.message, _LONG)}"),
        element("pre", error.log_tail[-_LONG:]) if error.log_tail else None,
        class_="reason",
    )


def _figures(job: Job) -> Markup | None:
    metrics = list(job.view.metrics.items())[:_METRICS]
    if not metrics:
        return None
    rows = [(shortened(name, 80), figure(value)) for name, value in metrics]
    return section("Evaluation", table("Newest figures", columns("Figure", "#Value"), rows))


def _checkpoints(job: Job, now: datetime) -> Markup | None:
    view = job.view
    rows: list[Sequence[Child]] = []
    if view.last_checkpoint is not None:
        last = view.last_checkpoint
        rows.append(
            ("newest", last.name, last.step, size(last.bytes), ago(view.checkpoint_time, now))
        )
    if view.best_checkpoint is not None:
        best = view.best_checkpoint
        rows.append(("best", best.name, best.step, size(best.bytes), ""))
    if not rows:
        return None
    heads = columns("Which", "Name", "#Step", "#Size", "Written")
    return section("Checkpoints", table("Where the job can go on", heads, rows))


def _messages(messages: Sequence[Message], now: datetime) -> Markup | None:
    if not messages:
        return None
    rows = [
        (
            ago(message.time, now),
            badge(message.level),
            "runner" if message.rank < 0 else f"rank\u00a0{message.rank}",
            shortened(message.text, _LONG),
        )
        for message in messages
    ]
    heads = columns("When", "Level", "Who", "Message")
    return section("Warnings", table("Warnings and errors, newest first", heads, rows))
