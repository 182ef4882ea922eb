"""Ending an engine, whatever it does meanwhile."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from multigrain.engine.inflight import InFlightImage
from multigrain.engine.protocol import Ready, encode
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.engine import EngineProcess
from multigrain_server.engines.launch import EngineChild, EngineOrder
from multigrain_server.engines.quarantine import RefusedImages
from multigrain_server.serving.config import ServingConfig

READY = Ready(
    runtime="deaf",
    reason="",
    resolutions=(32,),
    embedding_size=4,
    classes=0,
    max_batch=8,
    load_seconds=0.0,
)


class Deaf(EngineChild):
    """Says that it is ready, and reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.socket, self.theirs = socket.socketpair()
        self.theirs.send(encode(READY, 0))

    @property
    def pid(self) -> int:
        return 0

    def resident_bytes(self) -> int:
        return 0

    def held(self) -> list[InFlightImage]:
        return []

    def kill(self) -> None:
        if not self.ended.is_set():
            self.end_reason = "signal SIGKILL"
            self.ended.set()
            self.theirs.close()


async def test_an_engine_that_does_not_take_what_it_was_sent_is_killed_when_it_is_to_end() -> None:
    child = Deaf()

    async def launch(_order: EngineOrder, _config: ServingConfig) -> EngineChild:
        return child

    order = EngineOrder("deaf@1", Path("/nowhere"), "auto")
    engine = await EngineProcess.start(
        order, ServingConfig(), lambda _result: None, launch, RefusedImages()
    )
    try:
        # Far more than a socket holds: it cannot be closed before that is written.
        item = engine.submit(b"x" * 10_000_000, resolution=0, deadline_ns=0, vector=None, top_k=0)
        async with asyncio.timeout(10):
            await engine.stop()
        with pytest.raises(MultigrainError) as caught:
            await item.future
        assert caught.value.kind is ErrorKind.UNAVAILABLE
    finally:
        child.kill()
