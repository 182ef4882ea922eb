"""The calls that are being answered: their number, and whether new ones are welcome."""

from __future__ import annotations

import asyncio

from multigrain.errors import ErrorKind, MultigrainError

# Infrastructure must hear the truth until the end, and its streams never end by themselves.
_ALWAYS = ("/grpc.health.", "/grpc.reflection.")


class Calls:
    """Admission while the server drains."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, method: str) -> bool:
        """Counts a call in. False for one that is not counted and always admitted.

        Raises:
            MultigrainError: UNAVAILABLE while draining.
        """
        if method.startswith(_ALWAYS):
            return False
        if self._draining:
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                "the server is shutting down; try another one, or this one later",
                retry_after=1.0,
            )
        self.in_flight += 1
        self._idle.clear()
        return True

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def drain(self, seconds: float) -> bool:
        """Refuses new calls and waits for those in flight. False if the time was too short."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True
