"""Series of jobs, devices and event streams, made from the daemon's state at each scrape: a
deleted job leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from multigrain.events.records import RECORD_TYPES, JobState
from multigrain_server.devices import KINDS, Leases
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.service import EventFeeds
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.supervisor import Supervisor

MAX_ENDED = 200


class EventMetrics:
    """Counters of events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read = Counter(
            "multigrain_events",
            "Events read from the logs of active jobs.",
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


class JobCollector(Collector):
    """All active jobs, and the latest MAX_ENDED that ended and were not deleted."""

    def __init__(
        self, store: JobStore, supervisor: Supervisor, leases: Leases, feeds: EventFeeds
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._leases = leases
        self._feeds = feeds

    def collect(self) -> Iterator[Metric]:
        entries = self._supervisor.active
        active = [entry.job() for entry in entries.values()]
        known = {job.job_id for job in active}
        ended = [row.job for row in self._store.latest_ended(MAX_ENDED)]
        yield from _job_series([*active, *(job for job in ended if job.job_id not in known)])
        lag = GaugeMetricFamily(
            "multigrain_job_event_lag_bytes",
            "Bytes of an active job's record that the daemon has not read yet.",
            labels=["job"],
        )
        for entry in entries.values():
            lag.add_metric([entry.job_id], max(0, _size(entry.folder.events) - entry.feed.offset))
        yield lag
        counts = self._store.counts()
        jobs = GaugeMetricFamily("multigrain_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            jobs.add_metric([state.value], counts.get(state.value, 0))
        yield jobs
        devices = GaugeMetricFamily(
            "multigrain_devices", "Devices (of cpu: job slots).", labels=["kind", "state"]
        )
        for kind in KINDS:
            total, free = len(self._leases.inventory.units(kind)), len(self._leases.free(kind))
            devices.add_metric([kind, "free"], free)
            devices.add_metric([kind, "leased"], total - free)
        yield devices
        yield GaugeMetricFamily(
            "multigrain_event_subscribers", "Open event streams.", self._feeds.subscribers
        )


def _job_series(jobs: list[Job]) -> Iterator[Metric]:
    def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"multigrain_job_{name}", text, labels=["job", *labels])

    state = family("state", "1 for the state the job is in.", "state")
    attempt = family("attempt", "Attempt, from 1.")
    step = family("step", "Optimiser steps done.")
    total = family("total_steps", "Optimiser steps in all.")
    progress = family("progress_ratio", "Share done, 0 to 1.")
    loss = family("loss", "Newest loss and its terms.", "term")
    rate = family("learning_rate", "Newest learning rate.")
    damping = family("damping", "THOR's newest damping.")
    layers = family(
        "curvature_layers", "Layers by what the newest check of THOR's curvature did.", "decision"
    )
    skipped = family("skipped_steps", "Steps skipped so far: something was not finite.")
    scale = family("loss_scale", "Newest factor on the loss; 1 in float32.")
    speed = family("images_per_second", "Newest speed over all workers.")
    wait = family("data_wait_ratio", "Share of the newest step spent waiting for data.")
    seconds = family("step_seconds", "Duration of the newest step.")
    metric = family("metric", "Newest evaluation figures.", "metric")
    last_seq = family("last_seq", "Sequence number of the newest event.")
    told = family("event_timestamp_seconds", "When the job last told anything, Unix time.")
    saved = family("checkpoint_timestamp_seconds", "When the newest checkpoint was written.")
    for job in jobs:
        name, view = job.job_id, job.view
        state.add_metric([name, job.state.value], 1)
        attempt.add_metric([name], view.attempt)
        last_seq.add_metric([name], view.last_seq)
        if view.last_time:
            told.add_metric([name], _unix(view.last_time))
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
        speed.add_metric([name], point.images_per_second)
        wait.add_metric([name], point.data_wait)
        seconds.add_metric([name], point.step_seconds)
    yield from (state, attempt, step, total, progress, loss, rate, damping, speed, wait, seconds)
    yield from (metric, last_seq, layers, told, saved, skipped, scale)


def _unix(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
