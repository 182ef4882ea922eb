"""Bounds on messages of streams that have come only in part; no sockets, the clock stands."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from multigrain.errors import ErrorKind
from multigrain_server.grpc.unfinished_messages import UnfinishedMessages, received_size

MIB = 1 << 20
MESSAGE = 10 * MIB  # four of them may be unfinished


class Bench:
    """Streams whose bytes come as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.received: Counter[str] = Counter()
        self.messages = UnfinishedMessages(
            MESSAGE, lambda peer: self.received[peer], lambda: self.now
        )

    async def open(self, peer: str, client: str = "a", count: int = 1) -> list[Stream]:
        streams = [Stream(self, client, peer) for _ in range(count)]
        await settle()
        return streams

    async def look(self) -> None:
        self.messages.look()
        await settle()


class Stream:
    """A stream that waits for one message."""

    def __init__(self, bench: Bench, client: str, peer: str) -> None:
        self._bench, self._client, self._peer = bench, client, peer
        self._size: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.has_begun = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> str:
        await self._bench.messages.turn(self._client)
        with self._bench.messages.reading(self._client, self._peer) as read:
            self.has_begun.set()
            try:
                received_size.set(await self._size)
            except asyncio.CancelledError:
                if read.refusal is None:  # the test is over
                    raise
                assert read.refusal.kind is ErrorKind.OVERLOADED
                return read.refusal.message
        return ""

    async def deliver(self, size: int) -> None:
        """The rest of its message has come."""
        self._size.set_result(size)
        assert await self.task == ""

    @property
    def begun(self) -> bool:
        return self.has_begun.is_set()

    @property
    def refusal(self) -> str:
        return self.task.result() if self.task.done() else ""


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_streams_that_hold_too_much_are_ended_and_others_go_on(bench: Bench) -> None:
    hostile = [(await bench.open(f"peer {n}", "hostile"))[0] for n in range(10)]
    (other,) = await bench.open("other", "other")
    for number in range(10):
        bench.received[f"peer {number}"] += 3 * MIB + number
    await bench.look()
    assert not any(one.refusal for one in hostile)
    for number in range(10):
        bench.received[f"peer {number}"] += 3 * MIB
    await bench.look()
    ended = [number for number, one in enumerate(hostile) if one.refusal]
    assert ended == [6, 7, 8, 9]  # those that held most; the others hold 36 MiB
    assert "60 MiB of unfinished messages have come in 10 streams of hostile" in hostile[9].refusal
    assert not other.task.done()
    await bench.look()
    assert sum(bool(one.refusal) for one in hostile) == 4


async def test_finished_messages_are_not_counted(bench: Bench) -> None:
    streams = await bench.open("peer", count=10)
    for _ in range(20):
        bench.received["peer"] += int(1.01 * 8 * MIB)  # with its frames
        await streams.pop(0).deliver(8 * MIB)
        await bench.look()
        streams += await bench.open("peer")
    assert not any(one.task.done() for one in streams)


async def test_compressed_messages_give_no_credit(bench: Bench) -> None:
    streams = await bench.open("peer", count=20)
    for _ in range(5):
        bench.received["peer"] += 1000
        await streams.pop().deliver(10 * MIB)
    bench.received["peer"] += 41 * MIB
    await bench.look()
    assert all(one.refusal for one in streams)


async def test_a_few_streams_may_hold_what_they_want(bench: Bench) -> None:
    streams = await bench.open("peer", count=4)
    bench.received["peer"] += 100 * MIB
    await bench.look()
    assert not any(one.task.done() for one in streams)


async def test_streams_wait_while_others_of_their_client_are_half_of_the_limit(
    bench: Bench,
) -> None:
    first = await bench.open("peer", count=5)
    bench.received["peer"] += 25 * MIB
    await bench.look()
    (waiting,) = await bench.open("second peer")
    (other,) = await bench.open("other", "other")
    assert not waiting.begun
    assert other.begun
    await first[0].deliver(9 * MIB)
    await bench.look()
    assert waiting.begun


async def test_a_stream_that_waits_is_read_although_nothing_else_happens(bench: Bench) -> None:
    streams = await bench.open("peer", count=5)
    bench.received["peer"] += 25 * MIB
    await bench.look()
    await streams.pop().deliver(1)
    (waiting,) = await bench.open("second peer")
    assert not waiting.begun
    for stream in streams:
        await stream.deliver(6 * MIB)
    await asyncio.wait_for(waiting.has_begun.wait(), 60)


async def test_streams_that_hold_others_up_without_progress_are_ended(bench: Bench) -> None:
    stalled = await bench.open("peer", count=5)
    bench.received["peer"] += 25 * MIB
    await bench.look()
    (waiting,) = await bench.open("second peer")
    for _ in range(9):  # slow, and not stalled
        bench.now += 9
        bench.received["peer"] += MIB // 4
        await bench.look()
    assert not any(one.refusal for one in stalled)
    bench.now += 11
    await bench.look()
    assert all(one.refusal for one in stalled)
    assert waiting.begun


async def test_all_clients_together_have_a_limit(bench: Bench) -> None:
    streams = []
    for number in range(6):
        streams += await bench.open(f"peer {number}", f"client {number}", 5)
        bench.received[f"peer {number}"] += 30 * MIB
    await bench.look()
    # One of six clients: the others hold 150 MiB of 160.
    assert sum(bool(one.refusal) for one in streams) == 5


async def test_of_a_shared_connection_only_the_clients_own_streams_are_ended(bench: Bench) -> None:
    hostile = await bench.open("proxy", "hostile", 20)
    other = await bench.open("proxy", "other", 1)
    bench.received["proxy"] += 60 * MIB
    await bench.look()
    assert all(one.refusal for one in hostile)
    assert not other[0].task.done()
