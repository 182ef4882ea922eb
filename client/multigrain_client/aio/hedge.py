"""A call made a second time when the first is slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Response = TypeVar("Response")


async def hedged(
    begin: Callable[[float | None], Awaitable[Response]], after: float, remaining: float | None
) -> Response:
    """As ``multigrain_client.sync.hedge.hedged``."""
    started = time.monotonic()

    async def call(seconds: float | None) -> Response:
        return await begin(seconds)

    calls = [asyncio.create_task(call(remaining))]
    try:
        await asyncio.wait(calls, timeout=after)
        if calls[0].done():
            return calls[0].result()
        left = None if remaining is None else remaining - (time.monotonic() - started)
        if left is None or left > 0:
            calls.append(asyncio.create_task(call(left)))
        running = set(calls)
        while True:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                if task.exception() is None:
                    return task.result()
            if not running:
                return ended.pop().result()
    finally:
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
