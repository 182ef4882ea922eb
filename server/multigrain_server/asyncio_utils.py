"""Work beside a call: in tasks that outlive it, in threads that are waited for, in portions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# After this, other tasks get a chance.
_TURN_SECONDS = 0.004


def background_task(work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
    """A task that does not belong to the call that starts it.

    It runs in an empty context: request id, token and trace of the call would otherwise be on every
    log line of the task, for as long as it runs.

    Args:
        work: what it does.
        name: of the task.
    """
    return asyncio.create_task(work, name=name, context=Context())


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
    """The items, with a chance for other tasks to run after every few milliseconds."""
    start = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - start >= _TURN_SECONDS:
            await asyncio.sleep(0)
            start = time.perf_counter()
