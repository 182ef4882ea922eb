"""Streams of requests: answered in order, with a bounded number of images in flight."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class HasImages(Protocol):
    """A request with images."""

    @property
    def images(self) -> Sequence[bytes]: ...


Request = TypeVar("Request", bound=HasImages)
Reply = TypeVar("Reply")
_RequestIn = TypeVar("_RequestIn", contravariant=True)
_ReplyOut = TypeVar("_ReplyOut", covariant=True)


class Infers(Protocol[_RequestIn, _ReplyOut]):
    """:class:`ImageService`, or a wrapper of it."""

    async def infer(self, request: _RequestIn, /) -> _ReplyOut: ...


class _Window:
    """The images of one stream that were read and are not answered yet."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = asyncio.Event()

    async def enter(self, items: int) -> None:
        # An empty window takes any request, so that a larger one does not wait forever.
        while self._used and self._used + items > self._limit:
            self._changed.clear()
            await self._changed.wait()
        self._used += items

    def leave(self, items: int) -> None:
        self._used -= items
        self._changed.set()


@dataclass(frozen=True)
class _Pending(Generic[Reply]):
    """A request that is being computed, and its number of images."""

    task: asyncio.Task[Reply]
    items: int


class RequestStream(Generic[Request, Reply]):
    """Computes the requests of one stream.

    Each request passes the same admission as a unary call. The first that is refused or fails
    ends the stream with its error, after the replies to all requests before it: the caller knows
    from the number of replies where to continue.

    Args:
        service: computes a request.
        window: images that are in flight at a time.
    """

    def __init__(self, service: Infers[Request, Reply], window: int) -> None:
        self._service = service
        self._window = _Window(window)
        self._tasks: asyncio.Queue[_Pending[Reply] | BaseException | None]
        self._tasks = asyncio.Queue()

    async def replies(self, requests: AsyncIterable[Request]) -> AsyncGenerator[Reply, None]:
        """One reply for each request, in order. Raises what the first failing one raised."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (pending := await self._tasks.get()) is not None:
                if isinstance(pending, BaseException):
                    raise pending
                reply = await pending.task
                try:
                    yield reply
                finally:
                    # Only now: a reply that the caller does not take is still in the window.
                    self._window.leave(pending.items)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
            await self._cancel_pending()

    async def _read(self, requests: AsyncIterable[Request]) -> None:
        try:
            async for request in requests:
                items = len(request.images)
                await self._window.enter(items)
                task = asyncio.create_task(self._service.infer(request))
                self._tasks.put_nowait(_Pending(task, items))
        except Exception as error:  # handed to the consumer, in its place in the order
            self._tasks.put_nowait(error)
        else:
            self._tasks.put_nowait(None)

    async def _cancel_pending(self) -> None:
        rest = []
        while not self._tasks.empty():
            pending = self._tasks.get_nowait()
            if isinstance(pending, _Pending):
                pending.task.cancel()
                rest.append(pending.task)
        await asyncio.gather(*rest, return_exceptions=True)
