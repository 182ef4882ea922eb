"""The jobs of a daemon without its gRPC server, with a fake runner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from multigrain.events.log import read_events
from multigrain.events.records import StateRecord
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.jobs.job_request import JobKind
from multigrain.specs.training import TrainingSpec
from multigrain_server.database import Database
from multigrain_server.devices import Inventory, Leases
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.queue_limits import QueueLimits
from multigrain_server.jobs.recovery import Recovery
from multigrain_server.jobs.service import EventFeeds, Jobs
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.jobs.submission import CheckedSpec, Submission
from multigrain_server.jobs.supervisor import Supervisor, SupervisorOptions

FAKE_RUNNER = (sys.executable, "-m", "tests.server.jobs.fake_runner")


class JobServer:
    """Store, supervisor and service on one data directory, as a daemon has them."""

    def __init__(
        self,
        root: Path,
        devices: str,
        command: tuple[str, ...],
        limits: ImageLimits,
        max_queued: int,
        max_queued_per_client: int,
    ) -> None:
        self.root = root
        for name in ("jobs", "models"):
            (root / name).mkdir(exist_ok=True)
        self.database = Database(root / "state.db", [SCHEMA])
        self.store = JobStore(self.database)
        self.leases = Leases(Inventory.parse(devices))
        options = SupervisorOptions(
            command, image_limits=limits, poll_seconds=0.01, restart_delay_seconds=0.02
        )
        self.supervisor = Supervisor(
            self.store,
            self.leases,
            options,
            on_end=lambda active: self.feeds.keep(active.feed),
        )
        self.feeds = EventFeeds(root / "jobs", self.supervisor, heartbeat_seconds=0.2)
        self.jobs = Jobs(
            root / "jobs",
            root / "models",
            self.store,
            self.supervisor,
            self.leases,
            self.feeds,
            QueueLimits(self.supervisor, max_queued, max_queued_per_client),
        )
        Recovery(root / "jobs", self.store, self.supervisor, self.feeds).run()
        self.supervisor.start()

    async def submit(
        self,
        request_id: str = "",
        body: str = "x",
        name: str = "",
        client: str = "",
        **labels: str,
    ) -> Job:
        async def check() -> CheckedSpec:
            return CheckedSpec(JobKind.TRAINING, TrainingSpec())

        submission = Submission(JobKind.TRAINING, body, request_id, name, labels, client)
        return await self.jobs.submit(submission, check)

    async def until(self, job_id: str, wanted: Callable[[Job], bool]) -> Job:
        async with asyncio.timeout(60):
            while not wanted(job := self.jobs.get(job_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return job

    async def ended(self, job_id: str) -> Job:
        """Waits until a job has ended and its processes have exited."""
        return await self.until(
            job_id, lambda job: job.state.terminal and job_id not in self.supervisor.active
        )

    async def stop(self) -> None:
        """Stops this server; runners keep running."""
        await self.supervisor.stop()
        self.database.close()

    def kill_runners(self) -> None:
        for active in self.supervisor.active.values():
            if active.runner is not None and active.runner.pid and active.runner.alive():
                os.kill(active.runner.pid, signal.SIGKILL)


MakeServer = Callable[..., JobServer]


@pytest.fixture
async def make_server(tmp_path: Path) -> AsyncIterator[MakeServer]:
    """Starts job servers on the same data directory, one after another; ends their processes."""
    made: list[JobServer] = []

    def make(
        devices: str = "cpu:4",
        command: tuple[str, ...] = FAKE_RUNNER,
        limits: ImageLimits = DEFAULT_LIMITS,
        max_queued: int = 1000,
        max_queued_per_client: int = 1000,
    ) -> JobServer:
        made.append(
            JobServer(tmp_path, devices, command, limits, max_queued, max_queued_per_client)
        )
        return made[-1]

    yield make
    for server in made:
        server.kill_runners()
        await server.stop()


@pytest.fixture
async def server(make_server: MakeServer) -> JobServer:
    return make_server()


def states(server: JobServer, job_id: str) -> list[str]:
    """The states in a job's event log, in order."""
    events = read_events(server.root / "jobs" / job_id / "events.jsonl")
    return [str(e.record.state) for e in events if isinstance(e.record, StateRecord)]


def seqs(server: JobServer, job_id: str) -> list[int]:
    """The seq of a job's events, in order."""
    return [e.seq for e in read_events(server.root / "jobs" / job_id / "events.jsonl")]
