"""A bound on the bytes of messages of streams that have come only in part.

gRPC reads a message as soon as a stream is read, and a stream is read as long as it is open: a
client could hold one unfinished message of ``grpc.max_message_mib`` in each of its streams. gRPC
does not say how much of a message has come. The kernel says what has come on a connection, and what
of it was delivered as messages is known; the rest is unfinished.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, field

from multigrain.errors import ErrorKind, MultigrainError

#: Bytes of the message that was received last in this task.
received_size: ContextVar[int] = ContextVar("received_size", default=0)

# Messages of the largest size that may be unfinished in the streams of a client, and in all.
_PER_CLIENT = 4
_TOTAL = 16
# Frames, headers and TLS records: of each byte of a message, and of each message.
_OVERHEAD = 1.05
_MESSAGE_OVERHEAD = 128
# The account of a larger message is balanced at once: compressed, it may be more than has come.
_LARGE_BYTES = 64 << 10
_LOOK_SECONDS = 0.05
# Of the time between two looks, this part may be spent looking.
_LOOK_SHARE = 20
# A stream waits so long for others of its client that make no progress.
_STALLED_SECONDS = 10.0
_RETRY_SECONDS = 1.0

_MIB = 1 << 20


@dataclass(eq=False, slots=True)
class Read:
    """A message that a stream waits for.

    Attributes:
        client: whose stream it is.
        task: that waits.
        refusal: why it was ended; None while it is not.
    """

    client: str
    task: asyncio.Task[object]
    refusal: MultigrainError | None = None


@dataclass(eq=False, slots=True)
class _Connection:
    """Attributes:
    base: bytes received that are accounted for.
    held: unfinished bytes, as of the last look.
    reads: of streams.
    """

    base: int
    held: int = 0
    reads: dict[Read, None] = field(default_factory=dict)

    def part(self, client: str) -> float:
        """The part of the reads that are a client's. Which stream holds how much is unknown."""
        own = sum(read.client == client for read in self.reads)
        return own / len(self.reads) if own else 0.0


@dataclass(eq=False, slots=True)
class _Client:
    """Attributes:
    reads: how many of its streams wait for a message.
    requests: messages of its unary calls that are being received; they have a limit of their own.
    held: unfinished bytes, as of the last look.
    progress: when that changed.
    gated: streams that wait for others before they are read.
    """

    reads: int = 0
    requests: int = 0
    held: float = 0.0
    progress: float = 0.0
    gated: list[asyncio.Future[None]] = field(default_factory=list)


class UnfinishedMessages:
    """Ends streams whose unfinished messages are too many bytes.

    The streams of a client may hold four messages of the largest size, and all together sixteen.
    From half of that on, further streams of the client are not read until others have got their
    messages. Who exceeds it, or holds up other streams of its own without progress for 10 seconds,
    has streams ended with RESOURCE_EXHAUSTED: all of one connection, that which holds most.

    Args:
        max_message: bytes of a message at most.
        received_bytes: of a connection so far, by its peer; 0 = unknown, as of Unix sockets, which
            have no limit.
        clock: in seconds.
    """

    def __init__(
        self,
        max_message: int,
        received_bytes: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_message = max_message
        self._received_bytes = received_bytes
        self._clock = clock
        self._connections: dict[str, _Connection] = {}
        self._clients: defaultdict[str, _Client] = defaultdict(_Client)
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, client: str) -> None:
        """Waits until a message of one more stream of a client may be read."""
        found = self._clients.get(client)
        while found is not None and found.reads >= _PER_CLIENT and self._is_half_full(found):
            gate = asyncio.get_running_loop().create_future()
            found.gated.append(gate)
            self._watch()
            try:
                await gate
            finally:
                found.gated.remove(gate)
                self._forget(client)
            found = self._clients.get(client)

    @contextmanager
    def reading(self, client: str, peer: str) -> Iterator[Read]:
        """While this runs, the current task waits for a message of a stream.

        Args:
            client: whose stream it is.
            peer: its connection, as reported by gRPC.
        """
        task = asyncio.current_task()
        assert task is not None
        read = Read(client, task)
        connection = self._connections.get(peer)
        if connection is None:
            connection = self._connections[peer] = _Connection(self._received_bytes(peer))
        connection.reads[read] = None
        found = self._clients[client]
        found.reads += 1
        if found.reads > _PER_CLIENT:
            self._watch()
        try:
            yield read
            self._delivered(connection, peer)
        finally:
            del connection.reads[read]
            if not connection.reads:
                # What else has come belongs to no message of a stream.
                del self._connections[peer]
            found.reads -= 1
            self._forget(client)

    @contextmanager
    def receiving(self, client: str, peer: str) -> Iterator[None]:
        """While this runs, the message of a unary call is received."""
        if peer not in self._connections:
            yield
            return
        self._clients[client].requests += 1
        try:
            yield
            connection = self._connections.get(peer)
            if connection is not None:
                self._delivered(connection, peer)
        finally:
            self._clients[client].requests -= 1
            self._forget(client)

    def look(self) -> None:
        """Ends what is above the limits."""
        now = self._clock()
        many = {name for name, one in self._clients.items() if self._is_watched(one)}
        held = Counter(dict.fromkeys(many, 0))
        for peer, connection in self._connections.items():
            names = {read.client for read in connection.reads} & many
            if names:
                self._measure(connection, peer)
            for name in names:
                held[name] += int(connection.held * connection.part(name))
        total = held.total()
        for name, size in held.most_common():
            found = self._clients[name]
            if found.held != size:
                found.held, found.progress = size, now
            if found.gated and now - found.progress > _STALLED_SECONDS:
                total -= self._end_largest(name, found)
            while found.held > self._limit(found) or (
                total > _TOTAL * self._max_message and found.held
            ):
                freed = self._end_largest(name, found)
                total -= freed
                if not freed:
                    break
            if not self._is_half_full(found):
                for gate in found.gated:
                    if not gate.done():
                        gate.set_result(None)

    def _limit(self, found: _Client) -> int:
        return (_PER_CLIENT + found.requests) * self._max_message

    def _is_half_full(self, found: _Client) -> bool:
        return found.held > self._limit(found) / 2

    def _is_watched(self, found: _Client) -> bool:
        return found.reads > _PER_CLIENT or bool(found.gated)

    def _forget(self, client: str) -> None:
        found = self._clients[client]
        if not (found.reads or found.requests or found.gated):
            del self._clients[client]

    def _delivered(self, connection: _Connection, peer: str) -> None:
        size = received_size.get()
        connection.base += int(_OVERHEAD * size) + _MESSAGE_OVERHEAD
        if size > _LARGE_BYTES:
            self._measure(connection, peer)

    def _measure(self, connection: _Connection, peer: str) -> None:
        received = self._received_bytes(peer)
        # What was delivered of this cannot be more than has come: there is no credit for later.
        connection.base = min(connection.base, received)
        connection.held = received - connection.base

    def _end_largest(self, client: str, found: _Client) -> int:
        """Ends the streams of a client on the connection that holds most; what they held."""
        connection = max(
            self._connections.values(),
            key=lambda one: one.held * one.part(client),
            default=None,
        )
        freed = int(connection.held * connection.part(client)) if connection is not None else 0
        if connection is None or not freed:
            return 0
        for read in connection.reads:
            if read.client == client and read.refusal is None:
                read.refusal = MultigrainError(
                    ErrorKind.OVERLOADED,
                    f"{int(found.held) // _MIB} MiB of unfinished messages have come in "
                    f"{found.reads} streams of {client[:80]}: send fewer or smaller messages at a "
                    "time, and finish each",
                    retry_after=_RETRY_SECONDS,
                )
                read.task.cancel()
        connection.base += freed
        connection.held -= freed
        found.held -= freed
        return freed

    def _watch(self) -> None:
        if self._timer is None:
            self._look_in(_LOOK_SECONDS)

    def _look_in(self, seconds: float) -> None:
        # Not in the context of the call that happens to be the first.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._tick, context=Context())

    def _tick(self) -> None:
        self._timer = None
        began = time.monotonic()
        self.look()
        if any(map(self._is_watched, self._clients.values())):
            self._look_in(max(_LOOK_SECONDS, _LOOK_SHARE * (time.monotonic() - began)))
