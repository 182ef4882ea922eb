"""Stopping an engine that does not respond."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from multigrain.engine.protocol import InFlightImage, Ready, encode
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.engine import EngineProcess
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


async def start(child: EngineChild) -> EngineProcess:
    """An engine whose process is ``child``."""

    async def launch(_spec: EngineSpec, _config: ServingConfig) -> EngineChild:
        return child

    spec = EngineSpec("deaf@1", Path("/nowhere"), "auto")
    return await EngineProcess.start(
        spec, ServingConfig(), lambda _result: None, launch, Quarantine()
    )


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
