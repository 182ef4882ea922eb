"""The job services over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from multigrain.events.records import JobState
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs import training
from multigrain.v1.job_pb2 import (
    ARTIFACT_KIND_LOG,
    EVENT_KIND_STATE,
    JOB_STATE_CANCELLED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_STOPPING,
    JOB_STATE_SUCCEEDED,
    CancelJobRequest,
    DeleteJobRequest,
    GetArtifactRequest,
    GetJobRequest,
    Job,
    JobEvent,
    ListArtifactsRequest,
    ListJobsRequest,
    ResumeJobRequest,
    StreamEventsRequest,
)
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from multigrain_server import asyncio_utils
from multigrain_server.app import App
from multigrain_server.engines.config import ServingConfig
from multigrain_server.grpc.jobs import JobServicer
from multigrain_server.jobs.job import JobView
from multigrain_server.metrics.jobs import EventMetrics
from multigrain_server.models.transfers import Transfers


class Caller:
    """The stubs, with a dataset to train on."""

    def __init__(self, channel: grpc.aio.Channel, dataset: Path) -> None:
        self.jobs = JobServiceStub(channel)
        self._training = TrainingServiceStub(channel)
        self._spec = TrainingSpec(
            preset="digits-demo", dataset=DatasetSpec(train_path=str(dataset), val_path="")
        )

    async def start(self, request_id: str = "", name: str = "", **labels: str) -> Job:
        request = StartTrainingRequest(
            request_id=request_id, name=name, labels=labels, spec=self._spec
        )
        return await self._training.StartTraining(request)

    async def follow(self, job_id: str, after: int = 0) -> list[JobEvent]:
        request = StreamEventsRequest(job_id=job_id, after_seq=after, follow=True)
        return [event async for batch in self.jobs.StreamEvents(request) for event in batch.events]

    async def until(self, job_id: str, *states: int) -> Job:
        async with asyncio.timeout(60):
            while True:
                job = await self.jobs.GetJob(GetJobRequest(job_id=job_id))
                if job.state in states:
                    return job
                await asyncio.sleep(0.02)


@pytest.fixture
def caller(channel: grpc.aio.Channel, dataset: Path) -> Caller:
    return Caller(channel, dataset)


async def test_start_returns_the_resolved_specification(caller: Caller, dataset: Path) -> None:
    job = await caller.start(labels="x")
    assert job.state == JOB_STATE_QUEUED
    assert job.name == "digits-demo"
    assert job.training.dataset.train_path == str(dataset)
    assert job.training.model.classes == 2
    assert job.training.schedule.HasField("batch_size")
    assert job.create_time.seconds > 1_700_000_000


async def test_a_stream_ends_with_the_job(caller: Caller) -> None:
    job = await caller.start(events="3", pause="0.02")
    events = [e for e in await caller.follow(job.job_id) if not e.HasField("heartbeat")]
    assert [event.seq for event in events] == list(range(1, 8))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["state"] * 3 + ["loss"] * 3 + ["state"]
    assert events[3].loss.step == 1
    assert events[3].loss.classification_loss == 0.5
    assert events[-1].state.state == JOB_STATE_SUCCEEDED
    assert events[-1].state.exit_code == 0
    assert [e.seq for e in await caller.follow(job.job_id, after=5)] == [6, 7]
    done = await caller.jobs.GetJob(GetJobRequest(job_id=job.job_id))
    assert (done.last_seq, done.last_loss.step, done.attempt) == (7, 3, 1)
    assert done.end_time.ToNanoseconds() >= done.start_time.ToNanoseconds() > 0


async def test_only_the_requested_kinds_are_sent(caller: Caller) -> None:
    job = await caller.start(events="50")
    request = StreamEventsRequest(job_id=job.job_id, kinds=[EVENT_KIND_STATE], follow=True)
    batches = caller.jobs.StreamEvents(request)
    kinds = {e.WhichOneof("event") async for batch in batches for e in batch.events}
    assert kinds - {"heartbeat"} == {"state"}


async def test_a_repeated_request_creates_one_job(caller: Caller) -> None:
    jobs = await asyncio.gather(*(caller.start(request_id="one", name="a") for _ in range(5)))
    assert len({job.job_id for job in jobs}) == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.start(request_id="one", name="b")
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert jobs[0].job_id in str(caught.value.details())


async def test_cancel_resume_and_delete(caller: Caller) -> None:
    job = await caller.start(events="10000", pause="0.01")
    await caller.until(job.job_id, JOB_STATE_RUNNING)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.jobs.DeleteJob(DeleteJobRequest(job_id=job.job_id))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.jobs.ResumeJob(ResumeJobRequest(job_id=job.job_id))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    stopping = await caller.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))
    assert stopping.state in (JOB_STATE_STOPPING, JOB_STATE_CANCELLED)
    ended = await caller.until(job.job_id, JOB_STATE_CANCELLED)
    for _ in range(100):  # its runner may need a moment to be gone
        try:
            resumed = await caller.jobs.ResumeJob(ResumeJobRequest(job_id=job.job_id))
            break
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
            await asyncio.sleep(0.02)
    assert resumed.last_seq == ended.last_seq + 1
    await caller.until(job.job_id, JOB_STATE_RUNNING)
    await caller.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))
    seqs = [e.seq for e in await caller.follow(job.job_id) if not e.HasField("heartbeat")]
    assert seqs == list(range(1, len(seqs) + 1))
    for _ in range(100):
        try:
            await caller.jobs.DeleteJob(DeleteJobRequest(job_id=job.job_id))
            break
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
            await asyncio.sleep(0.02)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.jobs.GetJob(GetJobRequest(job_id=job.job_id))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_pages_are_not_disturbed_by_new_jobs(caller: Caller) -> None:
    made = [(await caller.start(name=f"Job {number}", events="0")).job_id for number in range(5)]
    first = await caller.jobs.ListJobs(ListJobsRequest(page_size=2))
    made.append((await caller.start(name="late", events="0")).job_id)
    pages, token = [first], first.next_page_token
    while token:
        request = ListJobsRequest(page_size=2, page_token=token)
        pages.append(await caller.jobs.ListJobs(request))
        token = pages[-1].next_page_token
    assert [len(page.jobs) for page in pages] == [2, 2, 1]
    assert [job.job_id for page in pages for job in page.jobs] == made[4::-1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.jobs.ListJobs(
            ListJobsRequest(page_token=first.next_page_token, name_contains="x")
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_listings_are_filtered(caller: Caller) -> None:
    red = await caller.start(name="Ein Größe", color="red", events="0")
    blue = await caller.start(name="other", color="blue", events="0")
    await caller.follow(red.job_id)
    await caller.follow(blue.job_id)

    async def ids(**fields: object) -> list[str]:
        request = ListJobsRequest(**fields)  # type: ignore[arg-type]
        return [job.job_id for job in (await caller.jobs.ListJobs(request)).jobs]

    assert await ids(labels={"color": "red"}) == [red.job_id]
    assert await ids(labels={"color": "red", "events": "1"}) == []
    assert await ids(name_contains="GRÖSSE") == [red.job_id]
    assert await ids(name_contains="grün") == []
    assert await ids(states=[JOB_STATE_SUCCEEDED]) == [blue.job_id, red.job_id]
    assert await ids(states=[JOB_STATE_RUNNING]) == []
    assert await ids(kinds=[2]) == []


async def test_the_request_id_is_returned(caller: Caller) -> None:
    call = caller.jobs.ListJobs(ListJobsRequest(), metadata=(("x-request-id", "mine-1"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"


async def test_an_internal_error_only_names_the_request_id(
    caller: Caller, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_arguments: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(app.jobs, "get", defect)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.jobs.GetJob(GetJobRequest(job_id="a"), metadata=(("x-request-id", "r7"),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error, request id r7"


async def test_a_stopping_server_ends_streams_with_unavailable(caller: Caller, app: App) -> None:
    job = await caller.start(events="10000", pause="0.01")
    following = asyncio.create_task(caller.follow(job.job_id))
    await caller.until(job.job_id, JOB_STATE_RUNNING)
    app.feeds.close()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await following
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_long_listing_does_not_block_the_event_loop(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio_utils, "_TURN_SECONDS", 0.0)
    for number in range(80):
        request = JobRequest(
            job_id=f"train-{number}",
            kind=JobKind.TRAINING,
            create_time="2026-01-31T12:00:00Z",
            training=training.TrainingSpec(),
        )
        app._store.insert(request, JobView(state=JobState.FAILED), 0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    service = JobServicer(app.jobs, EventMetrics(CollectorRegistry()), Transfers(ServingConfig()))
    others = asyncio.create_task(count())
    page = await service.ListJobs(ListJobsRequest(page_size=80), None)  # type: ignore[arg-type]
    others.cancel()
    assert len(page.jobs) == 80
    # A turn for each row that is read, and one for each message that is made.
    assert turns >= 160


async def test_the_files_of_a_job_are_sent(caller: Caller, app: App, dataset: Path) -> None:
    job = await caller.start(events="1")
    await caller.follow(job.job_id)
    folder = app.jobs.folder(job.job_id)
    content = os.urandom((2 << 20) + 7)
    folder.results.mkdir()
    (folder.results / "images.csv").write_bytes(content)
    (folder.logs / "worker_0.log").write_bytes(b"a log")
    listed = await caller.jobs.ListArtifacts(ListArtifactsRequest(job_id=job.job_id))
    sizes = {artifact.name: artifact.bytes for artifact in listed.artifacts}
    assert sizes["results/images.csv"] == len(content)
    logs = ListArtifactsRequest(job_id=job.job_id, kinds=[ARTIFACT_KIND_LOG])
    names = [a.name for a in (await caller.jobs.ListArtifacts(logs)).artifacts]
    assert "workers/worker_0.log" in names
    assert all(name.startswith("workers/") for name in names)
    wanted = GetArtifactRequest(job_id=job.job_id, name="results/images.csv", offset=7)
    messages = [message async for message in caller.jobs.GetArtifact(wanted)]
    assert b"".join(message.chunk for message in messages) == content[7:]
    assert messages[0].total_bytes == len(content)
    assert messages[-1].sha256 == hashlib.sha256(content[7:]).hexdigest()
    assert max(len(message.chunk) for message in messages) <= 1 << 20
    for name, code in (
        ("results/none.csv", grpc.StatusCode.NOT_FOUND),
        ("../spec.json", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in caller.jobs.GetArtifact(
                GetArtifactRequest(job_id=job.job_id, name=name)
            ):
                pass
        assert caught.value.code() is code
    assert app.models.transfers.running == 0


async def test_downloads_of_files_count_as_transfers(caller: Caller, app: App) -> None:
    job = await caller.start(events="1")
    await caller.follow(job.job_id)
    folder = app.jobs.folder(job.job_id)
    folder.results.mkdir()
    (folder.results / "big").write_bytes(os.urandom(16 << 20))  # more than a connection buffers
    wanted = GetArtifactRequest(job_id=job.job_id, name="results/big")
    unread = [caller.jobs.GetArtifact(wanted) for _ in range(4)]
    for call in unread:
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in caller.jobs.GetArtifact(wanted):
            pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in unread:
        call.cancel()


async def test_jobs_are_found_by_the_beginning_of_their_id(caller: Caller) -> None:
    first, second = await caller.start(events="1"), await caller.start(events="1")
    for prefix, found in (
        (first.job_id, {first.job_id}),
        (first.job_id[:-1], {first.job_id}),
        ("train-", {first.job_id, second.job_id}),
        ("eval", set[str]()),
        ("%", set[str]()),
    ):
        page = await caller.jobs.ListJobs(ListJobsRequest(id_prefix=prefix))
        assert {job.job_id for job in page.jobs} == found
