"""Bounds on messages that are being received."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc.aio
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.grpc.message_reads import MessageReads, ReadLimits

LIMITS = ReadLimits(
    total=3,
    per_client=2,
    waiting_per_client=5,
    seconds=600.0,
    contended_seconds=600.0,
    sweep_seconds=0.01,
)


class Sender:
    """A client whose messages come when the test says so."""

    def __init__(self, reads: MessageReads, name: str) -> None:
        self._reads = reads
        self._name = name
        self.begun = 0
        self._arrive = asyncio.Event()

    async def _receive(self) -> bytes:
        self.begun += 1
        await self._arrive.wait()
        return b"message"

    def send(self) -> asyncio.Task[bytes]:
        return asyncio.ensure_future(self._reads.read(self._name, self._receive))

    def finish(self) -> None:
        self._arrive.set()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_messages_of_a_client_wait_for_its_others() -> None:
    reads = MessageReads(LIMITS)
    slow, other = Sender(reads, "slow"), Sender(reads, "other")
    held = [slow.send() for _ in range(5)]
    await settle()
    assert slow.begun == 2
    other.finish()
    assert await asyncio.wait_for(other.send(), 60) == b"message"
    slow.finish()
    assert await asyncio.wait_for(asyncio.gather(*held), 60) == [b"message"] * 5


async def test_clients_are_read_in_rotation() -> None:
    reads = MessageReads(LIMITS)
    first, second, third = (Sender(reads, name) for name in ("1", "2", "3"))
    tasks = [first.send() for _ in range(4)]
    await settle()
    tasks += [second.send() for _ in range(3)]
    await settle()
    tasks += [third.send()]
    await settle()
    assert (first.begun, second.begun, third.begun) == (2, 1, 0)
    first.finish()
    await settle()
    # The third client does not wait for all of those that asked before it.
    assert (first.begun, second.begun, third.begun) == (3, 2, 1)
    second.finish()
    third.finish()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)


async def test_too_many_waiting_requests_are_refused() -> None:
    reads = MessageReads(LIMITS)
    sender = Sender(reads, "a")
    tasks = [sender.send() for _ in range(7)]
    await settle()
    with pytest.raises(MultigrainError, match="5 requests of a wait to be received") as caught:
        await sender.send()
    assert caught.value.kind is ErrorKind.OVERLOADED
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Canceled ones hold no place, whether they were read or waited.
    sender.finish()
    assert await asyncio.wait_for(sender.send(), 60) == b"message"


async def test_a_message_that_does_not_come_is_refused() -> None:
    stopped: list[str] = []
    limits = replace(LIMITS, seconds=0.05)
    reads = MessageReads(limits, stopped.append)
    with pytest.raises(MultigrainError, match=r"did not arrive within 0\.05 s") as caught:
        await asyncio.wait_for(Sender(reads, "a").send(), 60)
    assert caught.value.kind is ErrorKind.DEADLINE
    assert stopped == ["a"]


async def test_slow_messages_make_room_for_those_that_wait() -> None:
    limits = replace(LIMITS, total=2, contended_seconds=0.02)
    reads = MessageReads(limits)
    slow, other = Sender(reads, "slow"), Sender(reads, "other")
    held = [slow.send() for _ in range(2)]
    await settle()
    other.finish()
    # Only one is in the way.
    assert await asyncio.wait_for(other.send(), 60) == b"message"
    done, pending = await asyncio.wait(held, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    (task,) = done
    error = task.exception()
    assert isinstance(error, MultigrainError)
    assert error.kind is ErrorKind.OVERLOADED
    # Nobody waits any more, so the other one may take its time.
    slow.finish()
    assert await asyncio.wait_for(asyncio.gather(*pending), 60) == [b"message"]


async def test_a_client_that_sends_too_much_is_stopped() -> None:
    stopped: list[str] = []
    sent = iter(range(0, 1 << 20, 1000))
    limits = replace(LIMITS, bytes=4500)
    reads = MessageReads(limits, stopped.append, lambda _client: next(sent))
    with pytest.raises(MultigrainError, match="too large") as caught:
        await asyncio.wait_for(Sender(reads, "a").send(), 60)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert stopped == ["a"]


async def test_a_request_without_a_message_is_invalid() -> None:
    async def receive() -> object:
        return grpc.aio.EOF

    read = MessageReads(LIMITS).read
    with pytest.raises(MultigrainError, match="no message") as caught:
        await read("a", receive)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
