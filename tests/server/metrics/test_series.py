"""Series of a daemon are bounded in number, whatever callers send."""

from __future__ import annotations

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from multigrain.events.records import JobState
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import TrainingSpec
from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain_server.app import App
from multigrain_server.jobs.job import JobView
from multigrain_server.metrics.jobs import MAX_ENDED
from tests.server.status.test_pages import page

TIME = "2026-01-31T12:00:00Z"


def families(registry: CollectorRegistry) -> list[Metric]:
    return list(registry.collect())


def samples(app: App) -> set[str]:
    return {
        f"{sample.name} {sample.labels}"
        for family in families(app.registry)
        for sample in family.samples
    }


async def test_clients_cannot_create_series(app: App, channel: grpc.aio.Channel) -> None:
    made_up = "made-up"

    async def everything(number: int) -> None:
        name = f"{made_up}-{number}"
        embed = EmbeddingServiceStub(channel).Embed
        for request in (EmbedRequest(model=name, images=[b"x"]), EmbedRequest(model=f"{name}@1")):
            with pytest.raises(grpc.aio.AioRpcError):
                await embed(request)
        for method in (f"/{name}/Call", f"/multigrain.v1.EmbeddingService/{name}"):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(method)(b"")
        assert (await page(app, f"/{name}"))[0] == 404
        app._events.read(name)

    await everything(0)
    before = samples(app)
    for number in range(1, 20):
        await everything(number)
    assert samples(app) == before
    assert not [sample for sample in before if made_up in sample]


async def test_number_of_job_series_is_bounded(app: App) -> None:
    for number in range(MAX_ENDED + 20):
        request = JobRequest(
            job_id=f"train-{number}",
            kind=JobKind.TRAINING,
            create_time=TIME,
            training=TrainingSpec(),
        )
        app._store.insert(request, JobView(state=JobState.FAILED), 0)
    jobs = {
        sample.labels["job"]
        for family in families(app.registry)
        for sample in family.samples
        if "job" in sample.labels
    }
    assert len(jobs) == MAX_ENDED
