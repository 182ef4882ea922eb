"""SIGTERM, or the SIGHUP of a terminal, of a daemon under full load."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain_client import AsyncClient
from tests.e2e.daemon import Daemon, wait_for_no_processes
from tests.engine.pictures import picture
from tests.faults.serving import ALONE, Seen, amount, callers, serving_daemon, until

pytestmark = pytest.mark.process

CALLERS = 16


async def unready(daemon: Daemon) -> bool:
    """Whether a load balancer finds the daemon not ready."""

    def ask() -> bool:
        try:
            urllib.request.urlopen(f"http://{daemon.http_address}/readyz", timeout=30).close()
        except urllib.error.HTTPError as error:
            return error.code == 503
        return False

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_under_full_load_loses_no_call(
    tmp_path: Path, number: signal.Signals
) -> None:
    calls = amount(500, 10_000)
    daemon = serving_daemon(tmp_path, flags=["--shutdown-keep-serving-seconds=1"])
    try:
        seen = Seen()
        address = daemon.address
        async with callers(address, "tiny", CALLERS, seen, until_refused=True):
            await until(lambda: seen.answered >= calls)
            daemon.process.send_signal(number)
            await until(lambda: unready(daemon))
            unready_at, before = time.monotonic(), seen.answered
        assert await asyncio.to_thread(daemon.process.wait, 60) == 0
        # First it looks unready, then it serves on, and only then it refuses.
        assert unready_at < seen.refused_at
        assert seen.answered > before
        # Calls without an answer are refused, or find that nothing listens: calls that have started
        # are answered, and none ends as if its client had canceled it.
        assert set(seen.codes) == {"OK", "UNAVAILABLE"}, seen
        assert seen.wrong == 0
        assert "cut off" not in daemon.log.read_text()
        wait_for_no_processes(daemon.data_dir, 60)
    finally:
        daemon.end()


async def test_bulk_streams_end_with_their_answers_and_go_on_with_the_next_daemon(
    tmp_path: Path,
) -> None:
    daemon = serving_daemon(tmp_path)
    try:
        daemon.fix_port(daemon.address.rpartition(":")[2])
        restarted = asyncio.Event()
        pictures = [picture(seed) for seed in range(5)]
        sent = 0

        async def feed() -> AsyncIterator[bytes]:
            nonlocal sent
            while not restarted.is_set() or sent % 100:
                yield pictures[sent % 5]
                sent += 1

        async def restart() -> None:
            assert await asyncio.to_thread(daemon.stop) == 0
            await asyncio.to_thread(daemon.start)
            restarted.set()

        channel = grpc.aio.insecure_channel(daemon.address)
        async with channel, AsyncClient(daemon.address) as client:
            expected = await client.embed(pictures)
            # One that says nothing more holds nothing up either.
            idle = EmbeddingServiceStub(channel).EmbedStream(timeout=60)
            await idle.write(EmbedRequest(images=[pictures[0]]))
            assert await idle.read() is not grpc.aio.EOF
            got, restarting = 0, None
            async for answer in client.embed_stream(feed()):
                assert answer.index == got
                assert answer.vector == pytest.approx(expected[got % 5], abs=1e-4)
                got += 1
                if got == 50:
                    restarting = asyncio.create_task(restart())
            assert restarting is not None
            await restarting
            assert got == sent
            with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as caught:
                await idle.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "cut off" not in daemon.log.read_text()
        daemon.stop()
    finally:
        daemon.end()


async def test_callers_that_do_not_wait_get_unavailable_until_the_end(tmp_path: Path) -> None:
    daemon = serving_daemon(tmp_path)
    codes: Counter[str] = Counter()
    request = EmbedRequest(images=[picture(1)])

    async def call(channel: grpc.aio.Channel) -> None:
        try:
            await EmbeddingServiceStub(channel).Embed(request, timeout=60)
            codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1

    try:
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(daemon.address, ALONE))
                for _ in range(8)
            ]
            calls = []
            while daemon.process.poll() is None:
                calls.append(asyncio.create_task(call(channels[len(calls) % 8])))
                if len(calls) == 200:
                    daemon.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.002)
            await asyncio.gather(*calls)
        assert daemon.process.returncode == 0
        assert set(codes) == {"OK", "UNAVAILABLE"}
    finally:
        daemon.end()
