"""Long work next to the event loop: in threads that are waited for, and in small portions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Eight jobs take about 4 ms to decode and convert.
_ITEMS_PER_TURN = 8


async def to_thread_uncancellable(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like ``asyncio.to_thread``, but a canceled caller waits until the thread has finished.

    For functions that write files which a canceled caller removes: a thread that still writes
    would leave some of them behind.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.gather(thread, return_exceptions=True)
        raise


async def cooperative(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with a chance for other tasks to run after every few of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _ITEMS_PER_TURN == 0:
            await asyncio.sleep(0)
