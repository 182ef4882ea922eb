"""Who is refused in the middle of sending hears why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from multigrain.v1 import model_pb2
from multigrain_server.grpc.interceptor import Incoming
from tests.server.grpc.refusal import INVALID, refusal
from tests.server.grpc.serving import serving


class Numbers:
    """0, 1, 2, ... of which the first ``ready`` come at once and the others never, unless the
    stream ends there."""

    def __init__(self, ready: int, *, ends: bool) -> None:
        self.read = 0
        self._ready = ready
        self._ends = ends

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self._ready):
            await asyncio.sleep(0)
            self.read += 1
            yield number
        if not self._ends:
            await asyncio.Event().wait()


async def test_who_gives_up_waiting_for_a_message_takes_none_with_him() -> None:
    sent: asyncio.Queue[int] = asyncio.Queue()

    async def messages() -> AsyncIterator[int]:
        while True:
            yield await sent.get()

    incoming = Incoming(messages())
    waiting = asyncio.ensure_future(anext(incoming))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for number in range(3):
        sent.put_nowait(number)
    assert [await anext(incoming) for _ in range(3)] == [0, 1, 2]
    incoming.close()


@pytest.mark.parametrize("ends", [True, False])
async def test_what_is_still_on_its_way_is_read(ends: bool) -> None:
    numbers = Numbers(50, ends=ends)
    incoming = Incoming(aiter(numbers))
    assert await anext(incoming) == 0
    async with asyncio.timeout(60):
        await incoming.discard()
    assert numbers.read == 50
    incoming.close()


async def test_a_caller_that_never_stops_sending_is_not_read_for_ever() -> None:
    async def endless() -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(0)
            yield 1

    incoming = Incoming(endless())
    async with asyncio.timeout(60):
        await incoming.discard()
    incoming.close()


async def test_an_upload_that_is_refused_is_told_why(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    start = model_pb2.ImportModelRequest(start=model_pb2.ImportModelRequest.Start(name="new"))
    large = model_pb2.ImportModelRequest(chunk=bytes((2 << 20) + 1))
    async with serving(tmp_path) as served:
        for _ in range(12):
            error = await refusal(served.models.ImportModel(iter([start, *[large] * 20])))
            assert error.code() is INVALID
            assert "at most 2097152 are accepted" in (error.details() or "")
