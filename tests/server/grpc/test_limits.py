"""Limits per client: each is enforced, and named in the error."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from tests.e2e.daemon import Daemon
from tests.server.access.daemon import daemon, write_tokens

MIB = 1 << 20
CODE = grpc.StatusCode.RESOURCE_EXHAUSTED


async def refusal(call: grpc.aio.UnaryStreamCall) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return caught.value


def watch(channel: grpc.aio.Channel, token: str = "") -> grpc.aio.UnaryStreamCall:
    metadata = [("authorization", f"Bearer {token}")] if token else None
    return health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(), metadata=metadata
    )


async def test_open_streams_per_host_are_limited(
    tmp_path: Path,
) -> None:
    async with (
        daemon(tmp_path, access=AccessConfig(max_streams_per_client=2)) as app,
        grpc.aio.insecure_channel(app.address) as channel,
        grpc.aio.insecure_channel(app.address, [("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        first, second = watch(channel), watch(other)
        await first.read()
        await second.read()
        error = await refusal(watch(channel))
        assert error.code() is CODE
        assert "127.0.0.1 has 2 streams open" in (error.details() or "")
        assert "access.max_streams_per_client" in (error.details() or "")
        # Unary calls still work, and another stream can be opened once one ends.
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        first.cancel()

        for _ in range(500):
            try:
                await watch(channel).read()
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
        else:
            pytest.fail("no stream can be opened after one has ended")


async def test_open_streams_are_counted_per_token(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", "a:read", "b:read")
    access = AccessConfig(tokens=tmp_path / "tokens", health="token", max_streams_per_client=1)
    async with (
        daemon(tmp_path, access=access) as app,
        grpc.aio.insecure_channel(app.address) as channel,
    ):
        await watch(channel, tokens["a"]).read()
        await watch(channel, tokens["b"]).read()
        error = await refusal(watch(channel, tokens["b"]))
        assert error.code() is CODE
        assert (error.details() or "").startswith("b has 1 streams open")


def test_event_streams_have_a_separate_limit() -> None:
    access = Access(AccessConfig(max_streams_per_client=10, max_subscribers_per_client=1))
    peer = "ipv4:10.0.0.1:5"
    events = "/multigrain.v1.JobService/StreamEvents"
    with access.enter(events, (), stream_from=peer):
        with (
            pytest.raises(MultigrainError, match=r"access\.max_subscribers_per_client") as caught,
            access.enter(events, (), stream_from="ipv4:10.0.0.1:6"),
        ):
            pass
        assert caught.value.kind is ErrorKind.OVERLOADED
        with access.enter(events, (), stream_from="ipv4:10.0.0.2:6"):
            pass
        with access.enter("/multigrain.v1.EmbeddingService/EmbedStream", (), stream_from=peer):
            pass
    with access.enter(events, (), stream_from=peer):
        pass


@pytest.mark.process
def test_compressed_messages_are_limited_by_their_uncompressed_size(
    tmp_path: Path,
) -> None:
    server = Daemon(tmp_path, flags=["--grpc-max-message-mib=4"]).start()
    try:
        before = peak_memory(server.process.pid)
        with grpc.insecure_channel(
            server.address, [("grpc.max_send_message_length", -1)]
        ) as channel:
            embed = channel.unary_unary("/multigrain.v1.EmbeddingService/Embed")
            # Compressed, the others have 128 KiB.
            for size, how, says in (
                (5 * MIB, grpc.Compression.NoCompression, "larger than max"),
                (128 * MIB, grpc.Compression.Gzip, "larger than max"),
                (128 * MIB, grpc.Compression.Deflate, "larger than max"),
            ):
                with pytest.raises(grpc.RpcError, match=says) as caught:
                    embed(bytes(size), compression=how, timeout=60)
                assert caught.value.code() is CODE
        assert peak_memory(server.process.pid) - before < 64 * MIB
    finally:
        server.end()


def peak_memory(pid: int) -> int:
    """Peak resident memory of a process in bytes."""
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found) << 10
