"""The daemon's end of an engine's socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from multigrain.engine.wire import Frame, FrameParser, Message, WireError, encode

_END_SECONDS = 0.5


class EngineChannel(asyncio.Protocol):
    """Frames over a stream transport, without a task of its own.

    Args:
        max_payload: bytes of a payload that is accepted.
        on_frame: called for each frame, in order.
        on_closed: called once, with the reason if the engine broke the protocol.
    """

    def __init__(
        self,
        max_payload: int,
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[WireError | None], None],
    ) -> None:
        self._parser = FrameParser(max_payload)
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._error: WireError | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._lost = asyncio.Event()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Sends at once, or queues; silently nothing after the end, which ``on_closed`` tells."""
        if self._transport is None or self._transport.is_closing():
            return
        # One write for both: joining costs less than a second system call up to some
        # hundred kilobytes, which is what images have.
        self._transport.write(encode(message, len(payload)) + payload)

    async def drained(self) -> None:
        """Waits while the engine reads too slowly for what was sent."""
        await self._may_write.wait()

    async def ended(self) -> None:
        """Waits, for a moment at most, until all that the other side had sent is read.

        Somebody else may hold the other end open: a process that the engine started.
        """
        if self._transport is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._lost.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._parser.feed(data):
                self._on_frame(frame)
        except WireError as error:
            self._error = error
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_write.set()
        self._lost.set()
        self._transport = None
        self._on_closed(self._error)
