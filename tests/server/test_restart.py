"""The daemon is killed and restarted while a job runs: the job and its subscribers go on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1.job_pb2 import (
    JOB_STATE_SUCCEEDED,
    JobEvent,
    StreamEventsRequest,
)
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_client import AsyncClient, RetryPolicy
from tests.server.process import DaemonProcess, steady_port

pytestmark = pytest.mark.process

TOTAL = 240
SUBSCRIBERS = 20


class Subscriber:
    """Collects the events of a job over all restarts of the daemon.

    Args:
        address: of the daemon, the same after each restart.
        job_id: the job.
        disconnects: makes it disconnect at random, and resume after its last event.
    """

    def __init__(self, address: str, job_id: str, disconnects: random.Random | None) -> None:
        self._address = address
        self._job_id = job_id
        self._disconnects = disconnects
        self.events: list[bytes] = []
        self.last_seq = 0

    def _add(self, event: JobEvent) -> None:
        self.events.append(event.SerializeToString(deterministic=True))
        self.last_seq = event.seq

    def _budget(self) -> int:
        return self._disconnects.randrange(1, 60) if self._disconnects else 10**9


class StubSubscriber(Subscriber):
    """Uses the generated stub, and reconnects by itself after each error."""

    async def run(self) -> None:
        while True:
            try:
                if await self._stream():
                    return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)

    async def _stream(self) -> bool:
        budget = self._budget()
        async with grpc.aio.insecure_channel(self._address) as channel:
            request = StreamEventsRequest(job_id=self._job_id, after_seq=self.last_seq, follow=True)
            stream = JobServiceStub(channel).StreamEvents(request)
            async for event in (event async for batch in stream for event in batch.events):
                if event.HasField("heartbeat"):
                    continue
                self._add(event)
                budget -= 1
                if budget == 0:
                    stream.cancel()
                    return False
            return True


class ClientSubscriber(Subscriber):
    """Uses the Python client, which reconnects broken streams."""

    async def run(self) -> None:
        while not await self._stream():
            pass

    async def _stream(self) -> bool:
        budget = self._budget()
        async with AsyncClient(self._address, retry=RetryPolicy(stream_patience=60)) as client:
            async for event in client.stream_events(self._job_id, after_seq=self.last_seq):
                self._add(event)
                budget -= 1
                if budget == 0:
                    return False
        return True


async def test_twenty_subscribers_receive_the_same_events_across_killed_daemons(
    tmp_path: Path, dataset: Path
) -> None:
    data_dir = tmp_path / "data"
    address = f"127.0.0.1:{steady_port()}"
    flags = ["--data-root", str(tmp_path / "images"), "--listen", address]
    daemons = [DaemonProcess(data_dir, flags, "tests.server.fake_daemon")]
    try:
        await asyncio.to_thread(daemons[0].wait_ready)
        async with AsyncClient(address) as client:
            job = await client.start_training(
                {
                    "preset": "digits-demo",
                    "dataset": {"train_path": str(dataset), "val_path": ""},
                },
                labels={"events": str(TOTAL), "pause": "0.01"},
            )
        subscribers: list[StubSubscriber | ClientSubscriber] = []
        for number in range(SUBSCRIBERS):
            kind = StubSubscriber if number < SUBSCRIBERS // 2 else ClientSubscriber
            disconnects = random.Random(number) if number % 2 else None
            subscribers.append(kind(address, job.job_id, disconnects))
        tasks = [asyncio.create_task(subscriber.run()) for subscriber in subscribers]
        for threshold in (TOTAL // 4, TOTAL // 2):
            while subscribers[0].last_seq < threshold:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            daemons[-1].end()
            daemons.append(DaemonProcess(data_dir, flags, "tests.server.fake_daemon"))
            await asyncio.to_thread(daemons[-1].wait_ready)
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
        events = [JobEvent.FromString(raw) for raw in subscribers[0].events]
        assert [event.seq for event in events] == list(range(1, TOTAL + 5))
        losses = [event.loss.step for event in events if event.HasField("loss")]
        assert losses == list(range(1, TOTAL + 1))
        assert all(subscriber.events == subscribers[0].events for subscriber in subscribers)
        async with AsyncClient(address) as client:
            ended = await client.job(job)
        # The runner itself was never disturbed: one attempt, to its end.
        assert (ended.state, ended.attempt) == (JOB_STATE_SUCCEEDED, 1)
        assert ended.last_seq == events[-1].seq
    finally:
        for daemon in daemons:
            daemon.end()
