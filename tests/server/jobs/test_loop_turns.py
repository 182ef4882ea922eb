"""What many jobs, subscribers and listings cost the event loop: it turns in between.

Measured is the CPU time of single turns of the loop, which another load of the machine does not
change.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from multigrain.events.log import EventWriter
from multigrain.events.records import JobState, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.v1 import job_pb2
from multigrain_server.app import App
from multigrain_server.config import ServerConfig
from multigrain_server.engines.config import ServingConfig
from multigrain_server.grpc.jobs import JobServicer
from multigrain_server.http.metrics_page import MetricsPage
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.supervisor import ActiveJob
from multigrain_server.loop_lag import LoopLag
from multigrain_server.metrics.jobs import EventMetrics, JobCollector
from multigrain_server.models.transfers import Transfers
from multigrain_server.shared_page import PageThread, SharedPage
from tests.loop_turns import LONGEST, loop_turns
from tests.server.jobs.conftest import JobServer, MakeServer
from tests.server.jobs.fake_runner import loss

JOBS = 600


async def queue_jobs(server: JobServer) -> None:
    """Adds copies of one queued job, without the writing of their folders."""
    first = await server.submit(name="first", client="ada")
    active = server.supervisor.active[first.job_id]
    with server.store.transaction():
        for number in range(JOBS):
            request = active.request.model_copy(update={"job_id": f"{first.job_id}-{number}"})
            server.store.insert(request, active.feed.view, active.feed.offset)
            copy = ActiveJob(request, active.folder, active.feed)
            server.supervisor.active[request.job_id] = copy


@pytest.fixture
async def crowded(make_server: MakeServer) -> JobServer:
    """A server with many queued jobs."""
    server = make_server("cpu:0")
    await server.supervisor.stop()
    await queue_jobs(server)
    return server


async def test_metrics_of_many_jobs_are_collected_beside_the_event_loop(crowded: JobServer) -> None:
    registry = CollectorRegistry()
    collector = JobCollector(crowded.store, crowded.supervisor, crowded.leases, crowded.feeds)
    registry.register(collector)
    page = MetricsPage(registry, collector.prepare, PageThread())
    with loop_turns() as turns:
        body, content_type = await page.get("")
    assert body.count(b"multigrain_job_attempt{") == JOBS + 1
    assert content_type.startswith("text/plain")
    assert turns.longest < LONGEST, turns


async def test_formats_that_are_asked_for_at_the_same_time_are_rendered_one_by_one(
    crowded: JobServer,
) -> None:
    registry = CollectorRegistry()
    collector = JobCollector(crowded.store, crowded.supervisor, crowded.leases, crowded.feeds)
    registry.register(collector)
    page = MetricsPage(registry, collector.prepare, PageThread())
    accepts = ["", "application/openmetrics-text; version=1.0.0"] * 20
    pages = await asyncio.gather(*(page.get(accept) for accept in accepts))
    assert len({body for body, _ in pages}) == 2


async def test_a_list_of_many_jobs_is_read_in_parts(crowded: JobServer) -> None:
    servicer = JobServicer(
        crowded.jobs, EventMetrics(CollectorRegistry()), Transfers(ServingConfig())
    )
    with loop_turns() as turns:
        answer = await servicer.ListJobs(job_pb2.ListJobsRequest(page_size=1000), None)
    assert len(answer.jobs) > 500
    assert turns.longest < LONGEST, turns


async def test_supervising_many_queued_jobs_holds_up_nothing(crowded: JobServer) -> None:
    with loop_turns() as turns:
        for _ in range(3):
            await crowded.supervisor.check_all()
    assert turns.longest < LONGEST, turns


def write_log(folder: Path, losses: int) -> Path:
    path = JobFolder(folder).events
    path.parent.mkdir()
    with EventWriter(path, folder.name) as writer:
        for step in range(1, losses + 1):
            writer.append(loss(step, losses), 1)
        writer.append(StateRecord(JobState.SUCCEEDED), 1)
    return path


async def test_many_subscribers_that_open_a_long_log_at_once_read_in_turns(tmp_path: Path) -> None:
    feed = EventFeed("job", write_log(tmp_path / "job", 20_000))

    async def first_batch() -> int:
        async with aclosing(feed.batches(0, frozenset(), True)) as batches:
            async for batch in batches:
                return len(batch.lines)
        return 0

    with loop_turns() as turns:
        sizes = await asyncio.gather(*(first_batch() for _ in range(200)))
    assert min(sizes) > 100
    assert turns.longest < LONGEST, turns


async def test_a_page_is_rendered_once_for_all_who_wait_and_again_later() -> None:
    now, rendered = [0.0], []

    async def render() -> int:
        rendered.append(len(rendered))
        if len(rendered) == 3:
            raise ZeroDivisionError
        await asyncio.sleep(0)
        now[0] += 0.1
        return rendered[-1]

    page = SharedPage(render, lambda: now[0])
    assert await asyncio.gather(*(page.get() for _ in range(50))) == [0] * 50
    now[0] += 0.3
    assert await page.get() == 0, "kept for four times the time that it took"
    now[0] += 0.2
    assert await page.get() == 1
    now[0] += 1
    with pytest.raises(ZeroDivisionError):
        await page.get()
    assert await page.get() == 3, "a failure is not kept"


async def test_a_waiter_that_leaves_does_not_stop_the_rendering() -> None:
    go = asyncio.Event()

    async def render() -> str:
        await go.wait()
        return "page"

    page = SharedPage(render)
    first, second = (asyncio.create_task(page.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    go.set()
    assert await second == "page"


async def test_the_lag_of_the_event_loop_is_measured() -> None:
    registry = CollectorRegistry()
    watch = asyncio.create_task(LoopLag(registry).watch())
    async with asyncio.timeout(60):
        while not registry.get_sample_value("multigrain_event_loop_lag_seconds_count"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    watch.cancel()


async def test_a_daemon_measures_the_lag_of_its_event_loop(tmp_path: Path) -> None:
    app = App(ServerConfig(data_dir=tmp_path, listen="127.0.0.1:0", http_listen=""))
    await app.start()
    try:
        async with asyncio.timeout(60):
            name = "multigrain_event_loop_lag_seconds_count"
            while not app.registry.get_sample_value(name):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        await app.stop()
        await app.close_connections()
