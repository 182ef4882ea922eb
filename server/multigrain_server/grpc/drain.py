"""The calls in flight, and whether new ones are accepted.

When a gRPC server stops, calls that arrive at that moment end with CANCELLED, as if the client had
canceled them, and nothing tells the client to try another server. Clients that send the next
request as soon as they have a response hit that moment nearly every time. So the server does not
stop: it refuses calls with UNAVAILABLE until its process exits, and clients then get the same
status from their own side.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from multigrain.errors import ErrorKind, MultigrainError

# Health checks must be answered until the end, and their streams never end by themselves.
_ALWAYS_ACCEPTED = ("/grpc.health.", "/grpc.reflection.")

_LINGER_SECONDS = 0.2


class InFlightCalls:
    """Counts calls, and refuses new ones once the server drains."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        # Tasks that wait for the next message of a stream, and those of them that drain canceled.
        self._reading: set[asyncio.Task[Any]] = set()
        self._interrupted: set[asyncio.Task[Any]] = set()

    def enter(self, method: str) -> bool:
        """Counts a call. Returns False for one that is not counted and always accepted.

        Raises:
            MultigrainError: UNAVAILABLE while draining.
        """
        if method.startswith(_ALWAYS_ACCEPTED):
            return False
        if self._draining:
            raise _shutting_down()
        self.in_flight += 1
        self._idle.clear()
        return True

    def leave(self) -> None:
        """Ends a call for which ``enter`` returned True."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def incoming(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages of a stream that its client can continue on another server.

        Raises:
            MultigrainError: UNAVAILABLE once the server drains, in place of the next message;
                earlier ones are answered.
        """
        task = asyncio.current_task()
        assert task is not None
        iterator = aiter(messages)
        while not self._draining:
            self._reading.add(task)
            try:
                message = await anext(iterator)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if task not in self._interrupted:
                    raise
                task.uncancel()
                break
            finally:
                self._reading.discard(task)
                self._interrupted.discard(task)
            yield message
        raise _shutting_down()

    async def drain(self, seconds: float) -> bool:
        """Refuses new calls and waits for those in flight. Returns False on timeout."""
        self._draining = True
        self._interrupted |= self._reading
        for task in self._reading:
            task.cancel()
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def linger(self) -> None:
        """Waits until the last responses are sent, while new calls are refused."""
        await asyncio.sleep(_LINGER_SECONDS)


def _shutting_down() -> MultigrainError:
    return MultigrainError(
        ErrorKind.UNAVAILABLE,
        "the server is shutting down; try another one, or this one later",
        retry_after=1.0,
    )
