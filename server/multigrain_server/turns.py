"""Work on the event loop that lets others have their turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

# A job is decoded and made a message of in half a millisecond.
_AT_A_TIME = 8


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, a few at a time: for what takes its reader long all together."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_A_TIME == 0:
            await asyncio.sleep(0)
