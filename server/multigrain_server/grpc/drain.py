"""The calls that are being answered: their number, and whether new ones are welcome.

When a gRPC server stops, calls that reach it in the same moment end as CANCELLED, as if their
caller had given up, and nothing tells them to try elsewhere. Callers that send the next request on
every answer hit that moment nearly every time. So the server does not stop: it refuses with
UNAVAILABLE until its process ends, and a call that comes too late even for that hears the same from
its own side.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from multigrain.errors import ErrorKind, MultigrainError

# Infrastructure must hear the truth until the end, and its streams never end by themselves.
_ALWAYS = ("/grpc.health.", "/grpc.reflection.")

_LAST_CALLS_SECONDS = 0.2


class Calls:
    """Admission while the server drains."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        # That wait for the next message of their stream; those of them that are not to wait on.
        self._reading: set[asyncio.Task[Any]] = set()
        self._told: set[asyncio.Task[Any]] = set()

    def enter(self, method: str) -> bool:
        """Counts a call in. False for one that is not counted and always admitted.

        Raises:
            MultigrainError: UNAVAILABLE while draining.
        """
        if method.startswith(_ALWAYS):
            return False
        if self._draining:
            raise _shutting_down()
        self.in_flight += 1
        self._idle.clear()
        return True

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def incoming(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages of a stream that its caller may go on with elsewhere.

        Raises:
            MultigrainError: UNAVAILABLE once the server drains, in place of the next message:
                what came before is answered.
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
                if task not in self._told:
                    raise
                task.uncancel()
                break
            finally:
                self._reading.discard(task)
                self._told.discard(task)
            yield message
        raise _shutting_down()

    async def drain(self, seconds: float) -> bool:
        """Refuses new calls and waits for those in flight. False if the time was too short."""
        self._draining = True
        self._told |= self._reading
        for task in self._reading:
            task.cancel()
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def linger(self) -> None:
        """Gives answers the time to leave, while new calls are refused."""
        await asyncio.sleep(_LAST_CALLS_SECONDS)


def _shutting_down() -> MultigrainError:
    return MultigrainError(
        ErrorKind.UNAVAILABLE,
        "the server is shutting down; try another one, or this one later",
        retry_after=1.0,
    )
