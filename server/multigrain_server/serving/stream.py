"""Bulk answering: order kept, work bounded, the caller slowed down to the server's pace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Imaged(Protocol):
    """A request that brings images."""

    @property
    def images(self) -> Sequence[bytes]: ...


Request = TypeVar("Request", bound=Imaged)
Reply = TypeVar("Reply")
_Asked = TypeVar("_Asked", contravariant=True)
_Given = TypeVar("_Given", covariant=True)


class Answering(Protocol[_Asked, _Given]):
    """The core, or what stands before it."""

    async def answer(self, request: _Asked, /) -> _Given: ...


class _Window:
    """Images of one stream that are read and not yet answered to the caller."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = asyncio.Event()

    async def enter(self, items: int) -> None:
        # An empty window takes any request, so that one larger than it does not wait for ever.
        while self._used and self._used + items > self._limit:
            self._changed.clear()
            await self._changed.wait()
        self._used += items

    def leave(self, items: int) -> None:
        self._used -= items
        self._changed.set()


@dataclass(frozen=True)
class _Work(Generic[Reply]):
    """A request in work and its number of images."""

    task: asyncio.Task[Reply]
    items: int


class AnswerStream(Generic[Request, Reply]):
    """Answers the requests of one stream.

    Each request passes the same admission as a unary call. The first that is refused or fails
    ends the stream with its error, after the answers to all requests before it: the caller
    knows from the number of answers where to go on.

    Args:
        service: the core.
        window: images that are worked on at a time.
    """

    def __init__(self, service: Answering[Request, Reply], window: int) -> None:
        self._service = service
        self._window = _Window(window)
        self._tasks: asyncio.Queue[_Work[Reply] | BaseException | None]
        self._tasks = asyncio.Queue()

    async def answers(self, requests: AsyncIterable[Request]) -> AsyncGenerator[Reply, None]:
        """One answer for each request, in order. Raises what the first failing one raised."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (work := await self._tasks.get()) is not None:
                if isinstance(work, BaseException):
                    raise work
                answer = await work.task
                try:
                    yield answer
                finally:
                    # Only now: an answer that the caller does not take is still work.
                    self._window.leave(work.items)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
            await self._drop_work()

    async def _read(self, requests: AsyncIterable[Request]) -> None:
        try:
            async for request in requests:
                items = len(request.images)
                await self._window.enter(items)
                task = asyncio.create_task(self._service.answer(request))
                self._tasks.put_nowait(_Work(task, items))
        except Exception as error:  # handed to the consumer, in its place in the order
            self._tasks.put_nowait(error)
        else:
            self._tasks.put_nowait(None)

    async def _drop_work(self) -> None:
        rest = []
        while not self._tasks.empty():
            work = self._tasks.get_nowait()
            if isinstance(work, _Work):
                work.task.cancel()
                rest.append(work.task)
        await asyncio.gather(*rest, return_exceptions=True)
