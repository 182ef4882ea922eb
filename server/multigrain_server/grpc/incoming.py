"""What the caller of a client stream sends, readable even after the call was refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

# A refused caller is read on until nothing comes for this long, and for so long at most.
_QUIET_SECONDS = 0.1
_MOST_SECONDS = 2.0

_END = object()


class Incoming:
    """The messages of one stream, in order. Who is cancelled while waiting for one loses none.

    Of a stream that ends while a message is being written, some clients (grpc.aio) hear that the
    writing failed, and never why. So whoever refuses one lets :meth:`read_on` drop what is still
    on its way before the caller is told.

    Args:
        messages: as gRPC gives them.
    """

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages
        # Apart from who waits for it: cancelled in the middle, gRPC's reading could not go on.
        self._next: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> Any:
        if self._next is None:
            self._next = asyncio.create_task(self._read())
        message = await asyncio.shield(self._next)
        if message is _END:
            raise StopAsyncIteration
        self._next = None
        return message

    async def read_on(self) -> None:
        """Reads and drops until the caller pauses or has sent all, for two seconds at most."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _MOST_SECONDS
        while loop.time() < until:
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    await anext(self)
            except (TimeoutError, StopAsyncIteration):
                return

    def close(self) -> None:
        """Waits for no further message."""
        if self._next is not None:
            self._next.cancel()

    async def _read(self) -> Any:
        return await anext(self._messages, _END)
