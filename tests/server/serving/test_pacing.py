"""Requests of clients whose images come to nothing, beside those of others; the clock stands."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.serving.pacing import Pacing
from tests.engine.bundles import write_bundle
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import harness

MIB = 1 << 20
HARMFUL = b"harmful"


class Bench:
    """A pacing whose time passes only by :meth:`after`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeping: deque[asyncio.Future[None]] = deque()
        self.pacing = Pacing(lambda: self.now, self._sleep)
        self.read: list[str] = []

    async def _sleep(self, _seconds: float) -> None:
        self.sleeping.append(asyncio.get_running_loop().create_future())
        await self.sleeping[-1]

    async def after(self, seconds: float, *active: str) -> None:
        """Time passes; ``active`` are clients that make a call then."""
        self.now += seconds
        for client in active:
            await self.pacing.turn(client)
        while self.sleeping:
            waiting, self.sleeping = self.sleeping, deque()
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            before = len(self.read)
            for _ in range(5):
                await asyncio.sleep(0)
            if len(self.read) == before:
                return

    async def start(self, client: str, name: str) -> asyncio.Task[None]:
        """Begins to read a request; ``read`` gets its name when it may be read."""

        async def request() -> None:
            await self.pacing.turn(client)
            self.read.append(name)

        task = asyncio.create_task(request())
        for _ in range(5):
            await asyncio.sleep(0)
        return task

    def waste(self, client: str, mib: int) -> None:
        self.pacing.count(client, computed=[], wasted=[mib * MIB])

    def succeed(self, client: str, mib: int) -> None:
        self.pacing.count(client, computed=[mib * MIB], wasted=[])


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("images", "model"),
    [([b"good", HARMFUL], ""), ([b"good"], "unknown"), (1000 * [b"good"], "")],
    ids=["an image has an error", "the model is unknown", "there are too many images"],
)
async def test_requests_that_come_to_nothing_are_counted(
    tmp_path: Path, images: list[bytes], model: str
) -> None:
    write_bundle(tmp_path / "models")
    engines = FakeEngines(harm={HARMFUL: "budget"})
    async with harness(tmp_path, launch=engines.launch) as h:
        await h.manager.load("tiny")
        await h.embed(b"good", client="ordinary")
        with suppress(MultigrainError):
            await h.embed(*images, client="hostile", model=model)
        assert h.service.pacing.counts("hostile")
        assert not h.service.pacing.counts("ordinary")


async def test_requests_that_the_daemon_cannot_serve_are_not_counted(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    async with harness(tmp_path, launch=FakeEngines().launch) as h:
        await h.manager.load("tiny")
        h.service.admission.drain()
        with pytest.raises(MultigrainError) as caught:
            await h.embed(b"good", client="ordinary")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert not h.service.pacing.counts("ordinary")


async def test_who_wastes_much_waits_beside_others(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    bench.waste("hostile", 48)
    await bench.start("hostile", "large")
    assert bench.read == []
    await bench.start("ordinary", "small")
    assert bench.read == ["small"]
    await bench.after(4, "ordinary")
    assert bench.read == ["small"]
    await bench.after(5, "ordinary")
    assert bench.read == ["small", "large"]


async def test_requests_that_waited_are_read_one_after_the_other(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    bench.waste("hostile", 48)
    for name in "abc":
        await bench.start("hostile", name)
    await bench.after(9, "ordinary")
    assert bench.read == ["a"]
    bench.waste("hostile", 48)
    await bench.after(9, "ordinary")
    assert bench.read == ["a"]
    await bench.after(5, "ordinary")
    assert bench.read == ["a", "b"]


async def test_who_is_alone_never_waits(bench: Bench) -> None:
    bench.waste("hostile", 480)
    await bench.start("hostile", "first")
    assert bench.read == ["first"]


async def test_who_waited_goes_on_when_the_others_have_left(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    bench.waste("hostile", 480)
    await bench.start("hostile", "large")
    await bench.after(1, "ordinary")
    assert bench.read == []
    await bench.after(6)
    assert bench.read == ["large"]


async def test_images_that_are_computed_never_make_anybody_wait(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    for _ in range(100):
        bench.succeed("bulk", 48)
    await bench.start("bulk", "next")
    assert bench.read == ["next"]


async def test_who_is_refused_under_load_but_also_answered_does_not_wait(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    for _ in range(20):  # all at the same moment: nothing is forgotten meanwhile
        bench.waste("bulk", 6)
        bench.waste("bulk", 6)
        bench.succeed("bulk", 6)
    await bench.start("bulk", "next")
    assert bench.read == ["next"]


async def test_small_images_that_are_refused_count_as_well(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    for _ in range(100):
        bench.pacing.count("hostile", computed=[], wasted=32 * [28])
    await bench.start("hostile", "next")
    assert bench.read == []


async def test_only_so_many_requests_wait(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    bench.waste("hostile", 480)
    tasks = [await bench.start("hostile", "x") for _ in range(64)]
    with pytest.raises(MultigrainError) as caught:
        await bench.pacing.turn("hostile")
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert caught.value.retry_after
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    await bench.start("hostile", "x")  # there is room for one
    for task in tasks:
        task.cancel()


async def test_nobody_waits_for_long_after_the_last_wasted_request(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    for _ in range(100):
        bench.waste("hostile", 48)
    await bench.start("hostile", "next")
    await bench.after(25, "ordinary")
    assert bench.read == []
    await bench.after(6, "ordinary")
    assert bench.read == ["next"]


async def test_what_was_wasted_is_forgotten(bench: Bench) -> None:
    await bench.pacing.turn("ordinary")
    bench.waste("hostile", 40)
    await bench.after(11, "ordinary")
    bench.waste("hostile", 10)  # within the allowance again
    await bench.start("hostile", "next")
    assert bench.read == ["next"]
