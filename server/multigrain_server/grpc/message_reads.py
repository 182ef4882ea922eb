"""How many messages are received at a time.

gRPC holds at most a flow-control window of a message that nobody reads. Once it is read, gRPC takes
in all of it, up to ``grpc.max_message_mib``, however slowly it comes. So a request is read when its
call is authorized, and only some of each client at a time; the others wait, which costs a window.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import grpc.aio

from multigrain.errors import ErrorKind, MultigrainError

_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class ReadLimits:
    """Limits of messages that have begun to be read and are incomplete.

    Attributes:
        total: of all clients.
        per_client: of one client.
        waiting_per_client: requests of one client that may wait for their turn.
        seconds: for one message.
        contended_seconds: for one message while a request waits that could be read in its place.
        sweep_seconds: interval at which these are checked.
        bytes: that the client may send meanwhile; 0 = any number.
    """

    total: int
    per_client: int
    waiting_per_client: int
    seconds: float
    contended_seconds: float
    sweep_seconds: float
    bytes: int = 0


#: Of callers who were authorized: by a token, or by a daemon that has none.
AUTHORIZED = ReadLimits(
    total=32,
    per_client=8,
    waiting_per_client=4096,
    seconds=120.0,
    contended_seconds=10.0,
    sweep_seconds=1.0,
)
#: Of calls that need no token: a request for a health check has some bytes, which come at once.
OPEN = ReadLimits(
    total=2,
    per_client=1,
    waiting_per_client=64,
    seconds=2.0,
    contended_seconds=0.05,
    sweep_seconds=0.004,
    bytes=1 << 20,
)


@dataclass(eq=False, slots=True)
class _Read:
    client: str
    began: float
    task: asyncio.Task[Any]
    received: int = -1
    refusal: MultigrainError | None = None


class MessageReads:
    """Reads the only message of unary requests, within limits.

    Clients get their turn in rotation.

    Args:
        limits: how many, and how long.
        on_stopped: called with the client of a message that did not come in time.
        received_bytes: what a client has sent so far, for ``limits.bytes``.
    """

    def __init__(
        self,
        limits: ReadLimits,
        on_stopped: Callable[[str], None] | None = None,
        received_bytes: Callable[[str], int] | None = None,
    ) -> None:
        self._limits = limits
        self._received_bytes = received_bytes if limits.bytes else None
        self._on_stopped = on_stopped
        # In the order in which they began.
        self._reads: dict[_Read, None] = {}
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def read(self, client: str, receive: Callable[[], Awaitable[Any]]) -> Any:
        """The message of a request.

        Args:
            client: who sends it.
            receive: ``read`` of the call's context.

        Raises:
            MultigrainError: DEADLINE if the message does not come in time, OVERLOADED if too many
                of the client's are incomplete, INVALID_FIELD if there is none.
        """
        if self._waiting or not self._has_room(client):
            await self._turn(client)
        else:
            self._enter(client)
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        read = _Read(client, loop.time(), task)
        self._reads[read] = None
        if self._sweep is None:
            self._watch(loop)
        try:
            message = await receive()
        except asyncio.CancelledError:
            if read.refusal is None:
                raise
            task.uncancel()
            raise read.refusal from None
        finally:
            del self._reads[read]
            self._leave(client)
        if message is grpc.aio.EOF:
            # gRPC has answered the caller of a message that is too large.
            raise MultigrainError(
                ErrorKind.INVALID_FIELD,
                "the request has no message, or one larger than grpc.max_message_mib",
            )
        return message

    def _has_room(self, client: str) -> bool:
        return self._total < self._limits.total and self._counts[client] < self._limits.per_client

    async def _turn(self, client: str) -> None:
        """Waits until a message of the client may be read, which is counted then."""
        queue = self._waiting.setdefault(client, deque())
        if len(queue) >= self._limits.waiting_per_client:
            raise MultigrainError(
                ErrorKind.OVERLOADED,
                f"{len(queue)} requests of {client} wait to be received: send fewer at a time",
                retry_after=_RETRY_SECONDS,
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        # A client that waits may not have noticed that there is room by now.
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(client)
            raise
        finally:
            if not turn.done() or turn.cancelled():
                self._forget(client, turn)

    def _enter(self, client: str) -> None:
        self._counts[client] += 1
        self._total += 1

    def _leave(self, client: str) -> None:
        self._total -= 1
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]
        if self._waiting:
            self._next()

    def _next(self) -> None:
        """Lets clients that wait have what is free, one message of each at a time."""
        progress = True
        while progress and self._total < self._limits.total:
            progress = False
            for client in list(self._waiting):
                if not self._has_room(client):
                    continue
                queue = self._waiting.pop(client)
                turn = queue.popleft()
                if queue:
                    self._waiting[client] = queue  # behind the others
                if not turn.done():
                    self._enter(client)
                    turn.set_result(None)
                progress = True

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(client)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[client]

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not in the context of the call that happens to be the first.
        self._sweep = loop.call_later(
            self._limits.sweep_seconds, self._stop_slow, loop, context=Context()
        )

    def _stop_slow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stops reading what is overdue; runs while there is something to read."""
        self._sweep = None
        if not self._reads:
            return
        now = loop.time()
        limits = self._limits
        for read in self._reads:
            if now - read.began < limits.seconds:
                break
            self._stop(
                read,
                MultigrainError(
                    ErrorKind.DEADLINE,
                    f"the request did not arrive within {limits.seconds:g} s",
                ),
            )
        self._stop_large()
        for client, queue in self._waiting.items():
            for read in self._in_the_way_of(client)[: len(queue)]:
                if now - read.began < limits.contended_seconds:
                    break
                self._stop(
                    read,
                    MultigrainError(
                        ErrorKind.OVERLOADED,
                        f"the request did not arrive within {limits.contended_seconds:g} s while "
                        "others waited: send fewer or smaller requests at a time",
                        retry_after=_RETRY_SECONDS,
                    ),
                )
        self._watch(loop)

    def _stop_large(self) -> None:
        """Stops reading from clients who send far more than any good request has.

        gRPC refuses only what exceeds ``grpc.max_message_mib``, and holds three copies meanwhile.
        """
        if self._received_bytes is None:
            return
        for read in self._reads:
            received = self._received_bytes(read.client)
            if read.received < 0:
                read.received = received
            elif received - read.received > self._limits.bytes:
                self._stop(
                    read,
                    MultigrainError(ErrorKind.INVALID_FIELD, "the request is too large"),
                )

    def _in_the_way_of(self, client: str) -> list[_Read]:
        """The reads of the client if it has its share, else of who has most; oldest first."""
        own = self._counts[client] >= self._limits.per_client
        most = max(self._counts.values(), default=0)
        return [
            read
            for read in self._reads
            if ((read.client == client) if own else (self._counts[read.client] == most))
        ]

    def _stop(self, read: _Read, refusal: MultigrainError) -> None:
        if read.refusal is not None:
            return
        read.refusal = refusal
        read.task.cancel()
        if self._on_stopped is not None:
            self._on_stopped(read.client)
