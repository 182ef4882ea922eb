"""Stopping an engine that does not respond."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from unittest import mock

import pytest

from multigrain.engine.protocol import (
    Cancel,
    Frame,
    FrameParser,
    InFlightImage,
    Ready,
    Result,
    encode,
)
from multigrain.engine.shared_images import LargeImage, SharedImages
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.engine import EngineChannel, EngineProcess
from multigrain_server.engines.images import ImageRequest, Quarantine
from multigrain_server.engines.launch import EngineChild, EngineSpec

READY = Ready(
    runtime="deaf",
    reason="",
    resolutions=(32,),
    embedding_size=4,
    classes=0,
    max_batch=8,
    load_seconds=0.0,
)


class DeafChild(EngineChild):
    """Reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.socket, self.theirs = socket.socketpair()

    @property
    def pid(self) -> int:
        return 0

    def resident_bytes(self) -> int:
        return 0

    def processing(self) -> list[InFlightImage]:
        return []

    def kill(self) -> None:
        if not self.ended.is_set():
            self.end_reason = "signal SIGKILL"
            self.ended.set()
            self.theirs.close()


async def start(child: EngineChild, config: ServingConfig | None = None) -> EngineProcess:
    """An engine whose process is ``child``."""

    async def launch(_spec: EngineSpec, _config: ServingConfig) -> EngineChild:
        return child

    spec = EngineSpec("deaf@1", Path("/nowhere"), "auto")
    return await EngineProcess.start(
        spec, config or ServingConfig(), lambda _result: None, launch, Quarantine()
    )


@pytest.mark.parametrize("size", [4_000_000, 10], ids=["large", "small"])
async def test_canceled_images_that_an_engine_does_not_drop_are_bounded(size: int) -> None:
    child = DeafChild()
    child.images = SharedImages()
    child.theirs.send(encode(READY, 0))
    config = ServingConfig(queue_bytes=40 << 20, queue_items=64)
    engine = await start(child, config)
    try:
        image = b"x" * size
        accepted = min(4 * 64, 2 * (40 << 20) // size)
        for _ in range(accepted):
            engine.submit(ImageRequest("", [image]), image).cancel()
        with pytest.raises(MultigrainError, match="not yet dropped") as refused:
            engine.submit(ImageRequest("", [image]), image)
        assert refused.value.kind is ErrorKind.OVERLOADED
        assert refused.value.retry_after
        assert os.fstat(child.images.fd).st_blocks * 512 <= 2 * (40 << 20) + (1 << 20)
        # Once the engine has dropped one there is room for another.
        child.theirs.send(encode(Result(id=1, error=ErrorKind.CANCELLED), 0))
        for _ in range(1000):
            if engine.in_flight < accepted:
                break
            await asyncio.sleep(0.01)
        engine.submit(ImageRequest("", [image]), image).cancel()
    finally:
        child.kill()
        await engine.stop()
        child.images.close()


async def test_nothing_empty_is_written_to_an_engine() -> None:
    transport = mock.create_autospec(asyncio.Transport, instance=True)
    transport.is_closing.return_value = False
    channel = EngineChannel(1 << 20, lambda _frame: None, lambda _error: None)
    channel.connection_made(transport)
    channel.send(Cancel(id=1))
    channel.send(Cancel(id=2), b"payload")
    await asyncio.sleep(0)
    (parts,) = transport.writelines.call_args.args
    assert b"".join(parts) == encode(Cancel(id=1), 0) + encode(Cancel(id=2), 7) + b"payload"
    assert all(parts)


async def test_a_small_image_does_not_wait_behind_large_ones_in_the_socket() -> None:
    child = DeafChild()
    child.images = SharedImages()
    child.theirs.send(encode(READY, 0))
    engine = await start(child)
    try:
        large, small = b"x" * 10_000_000, b"small"
        items = [engine.submit(ImageRequest("", [image]), image) for image in (large, large, small)]
        child.theirs.setblocking(False)
        frames: list[Frame] = []
        parser, received = FrameParser(1 << 20), 0
        async with asyncio.timeout(10):
            while len(frames) < len(items):
                data = await asyncio.get_running_loop().sock_recv(child.theirs, 1 << 16)
                received += len(data)
                frames += parser.feed(data)
        assert received < 1000
        assert [frame.payload for frame in frames] == [b"", b"", small]
        place = frames[0].message.stored
        assert LargeImage(child.images.fd, place).read() == large
        # Its place is free once it is answered.
        held = os.fstat(child.images.fd).st_blocks
        child.theirs.send(encode(Result(id=items[0].id), 0))
        async with asyncio.timeout(10):
            await items[0].future
        assert held - os.fstat(child.images.fd).st_blocks >= len(large) // 512
    finally:
        child.kill()
        child.images.close()


async def test_an_engine_that_reads_nothing_is_killed_when_it_is_stopped() -> None:
    child = DeafChild()
    child.theirs.send(encode(READY, 0))
    engine = await start(child)
    try:
        # Far more than a socket holds: it cannot be closed before that is written.
        image = b"x" * 10_000_000
        item = engine.submit(ImageRequest("", [image]), image)
        async with asyncio.timeout(10):
            await engine.stop()
        with pytest.raises(MultigrainError) as caught:
            await item.future
        assert caught.value.kind is ErrorKind.UNAVAILABLE
    finally:
        child.kill()
