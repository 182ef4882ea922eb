"""A whole daemon with hostile files where a caller, or somebody on its disk, put them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from multigrain.events.records import JobState
from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.evaluation_pb2_grpc import EvaluationServiceStub
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec
from multigrain.v1.job_pb2 import Job, ListJobsRequest, StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.model_pb2 import ListModelsRequest
from multigrain.v1.model_pb2_grpc import ModelServiceStub
from multigrain_server.app import App
from multigrain_server.config import JobsConfig, ServerConfig
from tests.hostile_files import KINDS, alarm, put
from tests.server.jobs.test_hostile_folders import job_id_of, make_job_folder
from tests.server.status.test_pages import page


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[App]:
    """A daemon that knows a healthy job and one for each kind, whose event log is hostile."""
    jobs = tmp_path / "data" / "jobs"
    jobs.mkdir(parents=True)
    for kind in ("healthy", *KINDS):
        make_job_folder(jobs, kind)
    config = ServerConfig(
        data_dir=tmp_path / "data",
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        jobs=JobsConfig(poll_seconds=0.01, heartbeat_seconds=0.2),
    )
    app = App(config, ("false",))
    await app.start()
    for kind in KINDS:
        put(jobs / job_id_of(kind) / "events.jsonl", kind)
    yield app
    await app.stop()
    await app.close_connections()


async def _stream(stub: JobServiceStub, job_id: str) -> grpc.StatusCode:
    try:
        async for _ in stub.StreamEvents(StreamEventsRequest(job_id=job_id), timeout=60):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_hostile_event_logs_cost_only_their_own_jobs(started: App) -> None:
    with alarm(120):
        async with grpc.aio.insecure_channel(started.address) as channel:
            stub = JobServiceStub(channel)
            for kind in KINDS:
                code = await _stream(stub, job_id_of(kind))
                # RESOURCE_EXHAUSTED is that of STORAGE. Without events the stream is empty.
                assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK), kind
                assert (await page(started, f"/jobs/{job_id_of(kind)}"))[0] == 200, kind
            assert await _stream(stub, job_id_of("healthy")) is grpc.StatusCode.OK
            assert (await page(started, "/"))[0] == 200
            assert (await page(started, f"/jobs/{job_id_of('healthy')}"))[0] == 200
            listed = await stub.ListJobs(ListJobsRequest(page_size=100), timeout=60)
            assert len(listed.jobs) == len(KINDS) + 1


async def test_a_pipe_as_manifest_leaves_the_daemon_answering(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    """The whole daemon hung, and SIGTERM had no effect."""
    weights = dataset.parent / "weights"
    weights.mkdir()
    for name in ("manifest.json", "model.json"):
        put(weights / name, "pipe")
    spec = EvaluationSpec(
        dataset_path=str(dataset),
        tasks=["classification"],
        weights={"checkpoint_path": str(weights)},
    )
    with alarm(120):
        stub = EvaluationServiceStub(channel)
        calls = [
            stub.StartEvaluation(StartEvaluationRequest(spec=spec), timeout=60) for _ in range(8)
        ]
        found = await asyncio.gather(*calls)
        assert all(isinstance(job, Job) for job in found)
        assert (await page(app, "/healthz"))[0] == 200
        await ModelServiceStub(channel).ListModels(ListModelsRequest(), timeout=60)


async def test_a_link_out_of_the_roots_is_reported_with_the_job(
    channel: grpc.aio.Channel, app: App, dataset: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.png").write_bytes((dataset / "cat" / "0.png").read_bytes())
    (dataset / "cat" / "more").symlink_to(outside)
    (dataset / "dog" / "link.png").symlink_to(outside / "private.png")
    weights = dataset.parent / "weights.safetensors"
    weights.touch()
    spec = EvaluationSpec(
        dataset_path=str(dataset),
        tasks=["classification"],
        weights={"checkpoint_path": str(weights)},
    )
    stub = EvaluationServiceStub(channel)
    job = await stub.StartEvaluation(StartEvaluationRequest(spec=spec), timeout=60)
    assert [warning.partition("; left out: ")[2] for warning in job.warnings] == [
        "2 links that lead outside the data roots (cat/more, dog/link.png)"
    ]
    assert "private" not in str(job)


async def test_a_daemon_starts_with_every_hostile_folder_at_once(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    healthy = make_job_folder(jobs, "healthy")
    for kind in KINDS:
        for name in ("spec.json", "events.jsonl", "runner.json"):
            folder = make_job_folder(jobs, f"{kind} {name.partition('.')[0]}")
            put(folder.path / name, kind)
        put(jobs / f"plain-{kind.replace(' ', '-')}", kind)
        put(tmp_path / f"beside-{kind.replace(' ', '-')}", kind)
    config = ServerConfig(data_dir=tmp_path, listen="127.0.0.1:0")
    with alarm(120), capture_logs():
        app = App(config, ("false",))
        await app.start()
        try:
            assert app.jobs.get(healthy.job_id).state is JobState.SUCCEEDED
        finally:
            await app.stop()
            await app.close_connections()
