"""What the overview shows, taken from the daemon's state at one moment."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from multigrain import __version__, machine
from multigrain.jobs.job_folder import JobFolder
from multigrain_server.asyncio_utils import cooperative
from multigrain_server.devices import KINDS, Leases
from multigrain_server.grpc.health import Health
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.service import Jobs
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.supervisor import ActiveJob, Supervisor
from multigrain_server.metrics.gpus import GpuMonitor, GpuReading
from multigrain_server.metrics.requests import CallSummary, RequestMetrics
from multigrain_server.models.catalog import ModelCatalog, ModelView
from multigrain_server.models.metrics import ModelStatistics
from multigrain_server.serving.admission import Admission

# Most rows of each kind, so that the cost of a page does not grow with the number of jobs.
MAX_ACTIVE = 12
MAX_QUEUED = 20
MAX_ENDED = 15
MAX_MODELS = 40
MAX_DEVICES = 64
MAX_CALLS = 40


@dataclass(frozen=True)
class Sources:
    """The parts of the daemon that the pages read, on its event loop."""

    jobs_dir: Path
    jobs: Jobs
    store: JobStore
    supervisor: Supervisor
    leases: Leases
    models: ModelCatalog
    admission: Admission
    queue_items: int
    health: Health
    calls: RequestMetrics
    gpus: GpuMonitor
    address: Callable[[], str]
    started: float  # on time.monotonic

    def folder_of(self, job_id: str) -> JobFolder:
        """The folder of a job."""
        return JobFolder(self.jobs_dir / job_id)


@dataclass(frozen=True)
class ModelRow:
    """A model version and, while it is loaded, its statistics."""

    view: ModelView
    statistics: ModelStatistics | None
    default: bool

    @property
    def last_request(self) -> str:
        """RFC 3339 time of the latest request; "" = none."""
        if self.statistics is None or not self.statistics.last_ms:
            return ""
        return datetime.fromtimestamp(self.statistics.last_ms / 1000, UTC).isoformat()


@dataclass(frozen=True)
class Device:
    """A device that can be leased; ``owner`` "" = free."""

    kind: str
    unit: int
    owner: str


@dataclass(frozen=True)
class Host:
    """``load`` is the load average over one minute; memory and disk are in bytes."""

    cores: int
    load: float
    memory_used: int
    memory_total: int
    disk_used: int
    disk_total: int
    gpus: tuple[GpuReading, ...]


@dataclass(frozen=True)
class Snapshot:
    """The daemon at one moment; ``*_more`` counts rows beyond the maximum."""

    ready: bool
    embedding_ready: bool | None
    version: str
    address: str
    uptime_seconds: float
    counts: dict[str, int]
    active: tuple[Job, ...]
    active_more: int
    queued: tuple[Job, ...]
    queued_more: int
    ended: tuple[Job, ...]
    models: tuple[ModelRow, ...]
    models_more: int
    calls: tuple[CallSummary, ...]
    inflight_items: int
    queue_items: int
    devices: tuple[Device, ...]
    devices_more: int
    host: Host


async def take(sources: Sources) -> Snapshot:
    """Reads everything; call it on the event loop."""
    host = await asyncio.to_thread(_host, sources)
    running: list[ActiveJob] = []
    queued: list[ActiveJob] = []
    for entry in sources.supervisor.active.values():
        (queued if entry.queued and not entry.cancel_requested else running).append(entry)
    running.sort(key=lambda entry: entry.request.create_time, reverse=True)
    queued.sort(key=lambda entry: entry.queue_key)
    active_ids = {entry.job_id for entry in (*running, *queued)}
    ended = [row.job async for row in cooperative(sources.store.latest_ended(MAX_ENDED))]
    models = _models(sources.models)
    devices = [
        Device(kind, unit, _owner(sources.leases, kind, unit))
        for kind in KINDS
        for unit in sources.leases.inventory.units(kind)
    ]
    default = sources.models.default_state()
    return Snapshot(
        ready=sources.health.ready,
        embedding_ready=None if default is None else default.value == "ready",
        version=__version__,
        address=sources.address(),
        uptime_seconds=time.monotonic() - sources.started,
        counts=sources.store.counts(),
        active=tuple(entry.job() for entry in running[:MAX_ACTIVE]),
        active_more=max(0, len(running) - MAX_ACTIVE),
        queued=tuple(entry.job() for entry in queued[:MAX_QUEUED]),
        queued_more=max(0, len(queued) - MAX_QUEUED),
        ended=tuple(job for job in ended if job.job_id not in active_ids),
        models=tuple(models[:MAX_MODELS]),
        models_more=max(0, len(models) - MAX_MODELS),
        calls=tuple(sources.calls.summary()[:MAX_CALLS]),
        inflight_items=sources.admission.items,
        queue_items=sources.queue_items,
        devices=tuple(devices[:MAX_DEVICES]),
        devices_more=max(0, len(devices) - MAX_DEVICES),
        host=host,
    )


def _models(models: ModelCatalog) -> list[ModelRow]:
    """Every version, loaded ones first."""
    default = models.page(size=1).default_model
    rows = [
        ModelRow(
            view,
            loaded.statistics if loaded is not None else None,
            str(view.entry.version) == default,
        )
        for view in models.views()
        for loaded in (models.loaded.get(view.entry.version),)
    ]
    return sorted(rows, key=lambda row: row.statistics is None)


def _owner(leases: Leases, kind: str, unit: int) -> str:
    return next((lease.owner for lease in leases.of_kind(kind) if unit in lease.units), "")


def _host(sources: Sources) -> Host:
    memory = machine.memory()
    disk = shutil.disk_usage(sources.jobs_dir)
    return Host(
        # As the load: of the whole machine.
        cores=os.cpu_count() or 1,
        load=os.getloadavg()[0],
        memory_used=memory.used,
        memory_total=memory.total,
        disk_used=disk.total - disk.free,
        disk_total=disk.total,
        gpus=sources.gpus.readings,
    )
