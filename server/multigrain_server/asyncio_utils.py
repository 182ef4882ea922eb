"""Work in threads that is over when its caller goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As ``asyncio.to_thread``; a cancelled caller goes on only once the thread has ended.

    For functions that write files which the caller removes when it is cancelled: a thread that
    still writes would leave some of them behind.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.gather(thread, return_exceptions=True)
        raise


# MERGED: Work on the event loop that lets others have their turns.


# A job is decoded and made a message of in half a millisecond.
_AT_A_TIME = 8


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, a few at a time: for what takes its reader long all together."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_A_TIME == 0:
            await asyncio.sleep(0)
