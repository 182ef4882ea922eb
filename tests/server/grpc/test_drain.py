"""What clients get while the daemon stops."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1.job_pb2 import ListJobsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from tests.server.process import DaemonProcess

pytestmark = pytest.mark.process


async def _until_nobody_listens(address: str, codes: Counter[grpc.StatusCode]) -> None:
    """Sends the next request on every answer, whatever it says, without retries."""
    async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
        list_jobs = JobServiceStub(channel).ListJobs
        while True:
            try:
                await list_jobs(ListJobsRequest(), timeout=60)
                codes[grpc.StatusCode.OK] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1
                if "shutting down" not in (error.details() or ""):
                    return


async def test_clients_in_a_closed_loop_get_unavailable(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "data")
    try:
        address = await asyncio.to_thread(daemon.wait_ready)
        codes: Counter[grpc.StatusCode] = Counter()
        callers = [asyncio.create_task(_until_nobody_listens(address, codes)) for _ in range(16)]
        while codes[grpc.StatusCode.OK] < 100:  # noqa: ASYNC110 - any moment will do
            await asyncio.sleep(0.01)
        daemon.popen.send_signal(signal.SIGTERM)
        await asyncio.gather(*callers)
        assert await asyncio.to_thread(daemon.popen.wait, 60) == 0
    finally:
        daemon.end()
    # Not CANCELLED, which would mean that the client canceled the call.
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
