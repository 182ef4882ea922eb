"""A job in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from multigrain_server.jobs.job import Job
from multigrain_server.status.chart import chart
from multigrain_server.status.curve import CurvePoint
from multigrain_server.status.markup import Child, Markup, element
from multigrain_server.status.parts import badge, facts, job_link, shortened
from multigrain_server.status.words import ago, count, duration, figure


def running_card(job: Job, points: Sequence[CurvePoint], now: datetime) -> Markup:
    """One job that runs: how far it is, how fast, and its curve."""
    return element(
        "article",
        element("h3", job_link(job), " ", badge(job.state.value)),
        element("p", f"{job.request.kind.lower()} · {job.job_id}", class_="muted id"),
        progress_bar(job),
        running_facts(job),
        chart(points) if points else None,
        element("p", *_said(job, now), class_="muted"),
    )


def _said(job: Job, now: datetime) -> list[Child]:
    said = shortened(job.state_message)
    if not job.view.start_time:
        return [said]
    return [f"{said} · started " if said else "started ", ago(job.view.start_time, now)]


def progress_bar(job: Job) -> Markup:
    """How much is done."""
    share = min(1.0, max(0.0, job.view.progress.fraction))
    return element(
        "div",
        element(
            "progress",
            f"{share:.0%}",
            value=f"{share:.4f}",
            max=1,
            aria_label="share of steps done",
        ),
        element("span", f"{share:.0%}"),
        class_="progress",
    )


def running_facts(job: Job) -> Markup:
    """Newest figures of a job."""
    view, point = job.view, job.view.last_loss
    progress = view.progress
    epoch = f"{progress.epoch} of {progress.total_epochs}" if progress.total_epochs else ""
    done = (
        f"{count(progress.step)} of {count(progress.total_steps)}" if progress.total_steps else ""
    )
    left = duration(round(progress.eta_seconds)) if progress.eta_seconds > 0 else ""
    pairs: list[tuple[str, Child]] = [
        ("images" if point is None else "step", done),
        ("epoch", epoch),
        ("left", left),
        ("attempt", view.attempt if view.attempt > 1 else ""),
    ]
    if point is not None:
        pairs += [
            ("loss", figure(point.loss)),
            ("images/s", count(point.images_per_second)),
            ("learning rate", figure(point.learning_rate)),
            ("skipped steps", point.skipped_total or ""),
        ]
    return facts(pairs)


def outcome(job: Job) -> str:
    """What came of a job that ended."""
    view = job.view
    if view.error is not None:
        return shortened(f"{view.error.kind}: {view.error.message}", 160)
    if view.artifact is not None:
        return f"{view.artifact.model_name}@{view.artifact.model_version}"
    told = [f"{name} {figure(value)}" for name, value in list(view.metrics.items())[:3]]
    if not told and view.last_loss is not None:
        told = [f"loss {figure(view.last_loss.loss)}"]
    return shortened(", ".join(told), 160)
