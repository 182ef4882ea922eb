"""Metrics of jobs, devices and event streams.

They are collected from the daemon's state at each scrape, so a deleted job leaves no series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from multigrain.events.records import RECORD_TYPES, JobState
from multigrain.jobs.job_request import JobRequest
from multigrain_server.asyncio_utils import cooperative
from multigrain_server.devices import KINDS, Leases
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.service import EventFeeds
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.supervisor import Supervisor

MAX_ENDED = 200
# Characters of a text that becomes a label.
_LABEL = 100


class EventMetrics:
    """Counts events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read = Counter(
            "multigrain_events",
            "Events read from the event logs of active jobs.",
            ["kind"],
            registry=registry,
        )
        self._streamed = Counter(
            "multigrain_events_streamed",
            "Events sent to subscribers, heartbeats included.",
            registry=registry,
        )

    def read(self, kind: str) -> None:
        self._read.labels(kind if kind in RECORD_TYPES else "unknown").inc()

    def streamed(self, events: int) -> None:
        self._streamed.inc(events)


@dataclass(frozen=True)
class JobSnapshot:
    """What is collected, as it was at one moment.

    Attributes:
        jobs: active ones, and the latest that ended.
        logs: id, event log, and how much of it was read, of each active job.
        counts: number of jobs by state.
        devices: kind, free and leased ones.
        subscribers: open event streams.
    """

    jobs: list[Job]
    logs: list[tuple[str, Path, int]]
    counts: dict[str, int]
    devices: list[tuple[str, int, int]]
    subscribers: int


class JobCollector(Collector):
    """Collects every active job, and the latest MAX_ENDED jobs that ended.

    To collect them in another thread than the event loop's, call ``prepare`` before.
    """

    def __init__(
        self, store: JobStore, supervisor: Supervisor, leases: Leases, feeds: EventFeeds
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._leases = leases
        self._feeds = feeds
        self._prepared: JobSnapshot | None = None

    async def prepare(self) -> None:
        """Takes what the next ``collect`` returns, without holding up the event loop."""
        rows = self._store.latest_ended(MAX_ENDED)
        self._prepared = self._snapshot([row.job async for row in cooperative(rows)])

    def _snapshot(self, ended: list[Job]) -> JobSnapshot:
        entries = list(self._supervisor.active.values())
        known = self._supervisor.active.keys()
        units, free = self._leases.inventory.units, self._leases.free
        return JobSnapshot(
            jobs=[
                *(entry.job() for entry in entries),
                *(job for job in ended if job.job_id not in known),
            ],
            logs=[(entry.job_id, entry.folder.events, entry.feed.offset) for entry in entries],
            counts=self._store.counts(),
            devices=[(kind, len(free(kind)), len(units(kind)) - len(free(kind))) for kind in KINDS],
            subscribers=self._feeds.subscribers,
        )

    def collect(self) -> Iterator[Metric]:
        taken, self._prepared = self._prepared, None
        if taken is None:
            taken = self._snapshot([row.job for row in self._store.latest_ended(MAX_ENDED)])
        yield from _job_series(taken.jobs)
        lag = GaugeMetricFamily(
            "multigrain_job_event_lag_bytes",
            "Bytes of an active job's event log that the daemon has not read yet.",
            labels=["job"],
        )
        for job_id, events, offset in taken.logs:
            lag.add_metric([job_id], max(0, _size(events) - offset))
        yield lag
        jobs = GaugeMetricFamily("multigrain_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            jobs.add_metric([state.value], taken.counts.get(state.value, 0))
        yield jobs
        devices = GaugeMetricFamily(
            "multigrain_devices", "Devices by state; job slots for cpu.", labels=["kind", "state"]
        )
        for kind, free, leased in taken.devices:
            devices.add_metric([kind, "free"], free)
            devices.add_metric([kind, "leased"], leased)
        yield devices
        yield GaugeMetricFamily(
            "multigrain_event_subscribers", "Open event streams.", taken.subscribers
        )


def _job_series(jobs: list[Job]) -> Iterator[Metric]:
    def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"multigrain_job_{name}", text, labels=["job", *labels])

    info = family(
        "info",
        "1. The name, kind and preset of a job, to be joined with its other series.",
        *("name", "kind", "preset"),
    )
    state = family("state", "1 for the current state.", "state")
    attempt = family("attempt", "Current attempt; the first is 1.")
    step = family("step", "Optimizer steps done.")
    total = family("total_steps", "Optimizer steps in total.")
    progress = family("progress_ratio", "Progress, 0 to 1.")
    loss = family("loss", "Latest loss and its terms.", "term")
    rate = family("learning_rate", "Latest learning rate.")
    damping = family("damping", "Latest damping of THOR.")
    layers = family(
        "curvature_layers", "Layers by decision of the latest curvature check of THOR.", "decision"
    )
    skipped = family("skipped_steps", "Steps skipped so far because of non-finite values.")
    scale = family("loss_scale", "Current loss scale; 1 in float32.")
    speed = family("images_per_second", "Latest speed of all workers together, until the job ends.")
    wait = family(
        "data_wait_ratio",
        "Share of the latest step spent waiting for data, 0 to 1, until the job ends.",
    )
    seconds = family("step_seconds", "Duration of the latest step, until the job ends.")
    metric = family("metric", "Latest evaluation metrics.", "metric")
    last_seq = family("last_seq", "Sequence number of the latest event.")
    event_time = family("event_timestamp_seconds", "Unix time of the latest event of the job.")
    saved = family("checkpoint_timestamp_seconds", "Unix time of the latest checkpoint.")
    for job in jobs:
        name, view = job.job_id, job.view
        labels = [job.request.name[:_LABEL], job.request.kind.value, _preset(job.request)]
        info.add_metric([name, *labels], 1)
        state.add_metric([name, job.state.value], 1)
        attempt.add_metric([name], view.attempt)
        last_seq.add_metric([name], view.last_seq)
        if view.last_time:
            event_time.add_metric([name], _unix(view.last_time))
        if view.checkpoint_time:
            saved.add_metric([name], _unix(view.checkpoint_time))
        progress.add_metric([name], view.progress.fraction)
        for key, value in view.metrics.items():
            metric.add_metric([name, key], value)
        point = view.last_loss
        if point is None:
            continue
        step.add_metric([name], point.step)
        total.add_metric([name], point.total_steps)
        loss.add_metric([name, "total"], point.loss)
        loss.add_metric([name, "classification"], point.classification_loss)
        loss.add_metric([name, "instance"], point.instance_loss)
        rate.add_metric([name], point.learning_rate)
        damping.add_metric([name], point.damping)
        check = view.last_check
        if check is not None:
            refreshed, stopped = check.refreshed_layers, check.stopped_layers
            layers.add_metric([name, "refreshed"], refreshed)
            layers.add_metric([name, "kept"], check.curvature_layers - refreshed - stopped)
            layers.add_metric([name, "stopped"], stopped)
        skipped.add_metric([name], point.skipped_total)
        scale.add_metric([name], point.loss_scale)
        if not job.state.terminal:
            speed.add_metric([name], point.images_per_second)
            wait.add_metric([name], point.data_wait)
            seconds.add_metric([name], point.step_seconds)
    yield from (
        info,
        state,
        attempt,
        step,
        total,
        progress,
        loss,
        rate,
        damping,
        speed,
        wait,
        seconds,
    )
    yield from (metric, last_seq, layers, event_time, saved, skipped, scale)


def _preset(request: JobRequest) -> str:
    return str(getattr(request.spec, "preset", ""))[:_LABEL]


def _unix(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
