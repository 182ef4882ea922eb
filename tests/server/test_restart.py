"""The daemon may die; jobs and their subscribers go on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1.job_pb2 import (
    JOB_STATE_SUCCEEDED,
    GetJobRequest,
    JobEvent,
    StreamEventsRequest,
)
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from tests.server.process import DaemonProcess

pytestmark = pytest.mark.process

TOTAL = 400
SUBSCRIBERS = 20


class Subscriber:
    """Follows a job over daemons and interruptions, from the last seq it has."""

    def __init__(self, data_dir: Path, job_id: str, cuts: random.Random | None) -> None:
        self._address = data_dir / "address"
        self._job_id = job_id
        self._cuts = cuts
        self.events: list[bytes] = []
        self.last_seq = 0

    async def run(self) -> None:
        while True:
            try:
                if await self._once():
                    return
            except (grpc.aio.AioRpcError, FileNotFoundError):
                await asyncio.sleep(0.05)

    async def _once(self) -> bool:
        budget = self._cuts.randrange(1, 60) if self._cuts else 10**9
        async with grpc.aio.insecure_channel(self._address.read_text().strip()) as channel:
            request = StreamEventsRequest(job_id=self._job_id, after_seq=self.last_seq, follow=True)
            stream = JobServiceStub(channel).StreamEvents(request)
            async for event in (event async for batch in stream for event in batch.events):
                if event.HasField("heartbeat"):
                    continue
                self.events.append(event.SerializeToString(deterministic=True))
                self.last_seq = event.seq
                budget -= 1
                if budget == 0:
                    stream.cancel()
                    return False
            return True


async def test_subscribers_get_the_same_whole_list_across_a_killed_daemon(
    tmp_path: Path, dataset: Path
) -> None:
    data_dir = tmp_path / "data"
    flags = ["--data-root", str(tmp_path / "images")]
    daemons = [DaemonProcess(data_dir, flags, "tests.server.fake_daemon")]
    try:
        address = await asyncio.to_thread(daemons[0].wait_ready)
        async with grpc.aio.insecure_channel(address) as channel:
            spec = TrainingSpec(preset="digits-demo", dataset=DatasetSpec(train_path=str(dataset)))
            spec.dataset.val_path = ""
            request = StartTrainingRequest(
                spec=spec, labels={"events": str(TOTAL), "pause": "0.01"}
            )
            job = await TrainingServiceStub(channel).StartTraining(request, wait_for_ready=True)
        subscribers = [
            Subscriber(data_dir, job.job_id, random.Random(i) if i % 2 else None)
            for i in range(SUBSCRIBERS)
        ]
        tasks = [asyncio.create_task(subscriber.run()) for subscriber in subscribers]
        for threshold in (TOTAL // 4, TOTAL // 2):
            while subscribers[0].last_seq < threshold:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            daemons[-1].end()
            daemons.append(DaemonProcess(data_dir, flags, "tests.server.fake_daemon"))
            await asyncio.to_thread(daemons[-1].wait_ready)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
        seqs = [JobEvent.FromString(raw).seq for raw in subscribers[0].events]
        assert seqs == list(range(1, TOTAL + 5))
        assert all(subscriber.events == subscribers[0].events for subscriber in subscribers)
        async with grpc.aio.insecure_channel((data_dir / "address").read_text().strip()) as channel:
            ended = await JobServiceStub(channel).GetJob(GetJobRequest(job_id=job.job_id))
        # The runner itself was never disturbed: one attempt, to its end.
        assert (ended.state, ended.attempt) == (JOB_STATE_SUCCEEDED, 1)
    finally:
        for daemon in daemons:
            daemon.end()
