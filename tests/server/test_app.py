"""The daemon as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from multigrain.images.limits import ImageLimits
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.export_pb2_grpc import ExportServiceStub
from multigrain.v1.export_spec_pb2 import ExportSpec
from multigrain.v1.job_pb2 import ListJobsRequest, StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_server.app import App
from multigrain_server.config import JobsConfig, ServerConfig, ShutdownConfig
from multigrain_server.engines.config import ServingConfig
from tests.server.runners import until_idle


@pytest.mark.parametrize(("end", "looks"), [("SUCCEEDED", 1), ("FAILED", 0)])
async def test_an_export_that_succeeds_publishes_its_model(
    app: App,
    channel: grpc.aio.Channel,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    looks: int,
) -> None:
    published: list[int] = []
    monkeypatch.setattr(app.models, "publish", lambda: published.append(1))
    spec = ExportSpec(model_name="m")
    spec.weights.checkpoint_path = str(dataset)
    request = StartExportRequest(spec=spec, labels={"end": end})
    job = await ExportServiceStub(channel).StartExport(request)
    follow = StreamEventsRequest(job_id=job.job_id, follow=True)
    async for _ in JobServiceStub(channel).StreamEvents(follow):
        pass
    await until_idle(app)
    assert len(published) == looks


async def test_abandon_after_stop_is_harmless(app: App, tmp_path: Path) -> None:
    """As by a second signal that comes when the first has nearly done its work."""
    await app.stop()
    file_in_its_place = (tmp_path / "later").open("w")
    await app.abandon()
    with file_in_its_place:  # not closed in place of the data directory's lock
        file_in_its_place.write("still open")


async def test_jobs_configuration_reaches_the_supervisor(tmp_path: Path) -> None:
    jobs = JobsConfig(
        poll_seconds=0.02, heartbeat_seconds=3.0, max_runner_crashes=7, runner_restart_seconds=0.9
    )
    serving = ServingConfig(max_image_bytes=2048, max_image_pixels=178_000_000)
    app = App(ServerConfig(data_dir=tmp_path, jobs=jobs, serving=serving))
    options = app._supervisor._options
    roots = (tmp_path, tmp_path / "jobs", tmp_path / "models")
    assert options.image_limits == ImageLimits(2048, 178_000_000, roots)
    assert options.poll_seconds == 0.02
    assert options.max_runner_crashes == 7
    assert options.restart_delay_seconds == 0.9
    assert app.feeds.new("train-1")._heartbeat_seconds == 3.0
    await app.abandon()


@asynccontextmanager
async def _stopping(tmp_path: Path, **seconds: float) -> AsyncIterator[App]:
    app = App(
        ServerConfig(
            data_dir=tmp_path,
            listen="127.0.0.1:0",
            http_listen="",
            shutdown=ShutdownConfig(**seconds),
        )
    )
    await app.start()
    try:
        yield app
    finally:
        await app.close_connections()


async def test_calls_in_flight_have_drain_seconds(tmp_path: Path) -> None:
    async with _stopping(tmp_path, drain_seconds=0.2) as app, asyncio.timeout(10):
        app._calls.enter("/multigrain.v1.ModelService/LoadModel")  # and does not leave
        began = time.monotonic()
        await app.stop()
        assert time.monotonic() - began >= 0.2


async def test_a_stopping_daemon_keeps_serving_for_keep_serving_seconds(tmp_path: Path) -> None:
    async with (
        _stopping(tmp_path, keep_serving_seconds=1.0) as app,
        grpc.aio.insecure_channel(app.address) as channel,
    ):
        list_jobs = JobServiceStub(channel).ListJobs
        await list_jobs(ListJobsRequest())
        stop = asyncio.create_task(app.stop())
        while app.health.ready:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await list_jobs(ListJobsRequest())
        await stop
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down"):
            await list_jobs(ListJobsRequest())


async def test_new_calls_are_refused_for_a_moment_after_the_last_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process exits right after stop(): responses must have left by then."""
    async with _stopping(tmp_path) as app:
        drain, close = app._calls.drain, app.models.close
        times: list[float] = []

        async def timed_drain(seconds: float) -> bool:
            try:
                return await drain(seconds)
            finally:
                times.append(time.monotonic())

        async def timed_close(seconds: float) -> None:
            times.append(time.monotonic())
            await close(seconds)

        monkeypatch.setattr(app._calls, "drain", timed_drain)
        monkeypatch.setattr(app.models, "close", timed_close)
        await app.stop()
        drained, closed = times
        assert closed - drained >= 0.15
