"""Pages that are rendered in one thread, once for all who ask for them at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from multigrain_server.asyncio_utils import background_task

T = TypeVar("T")

# A page is kept for so many times the time that it took, within bounds, in seconds: rendering it
# again and again must not take much of the processor from calls.
_KEPT_FACTOR = 4.0
_LEAST_KEPT = 0.2
_MOST_KEPT = 2.0


class PageThread:
    """The thread that renders pages: one, because several would only share the processor."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "pages")

    async def run(self, render: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, render)


class SharedPage(Generic[T]):
    """A page that is rendered at most once at a time, and kept for a moment.

    Args:
        render: makes it.
        clock: in seconds, monotonic.
    """

    def __init__(
        self, render: Callable[[], Awaitable[T]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._render = render
        self._clock = clock
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        """The page; raises what rendering it raised."""
        task = self._task
        if task is None or (task.done() and (self._clock() >= self._until or _failed(task))):
            task = self._task = background_task(self._make())
        # Others wait for it too.
        return await asyncio.shield(task)

    async def _make(self) -> T:
        start = self._clock()
        page = await self._render()
        end = self._clock()
        self._until = end + min(max(_KEPT_FACTOR * (end - start), _LEAST_KEPT), _MOST_KEPT)
        return page


def _failed(task: asyncio.Task[T]) -> bool:
    return task.cancelled() or task.exception() is not None
