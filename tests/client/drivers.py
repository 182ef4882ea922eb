"""Runs the same tests against Client and AsyncClient."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from multigrain_client import AsyncClient


class BlockingAsyncClient:
    """An AsyncClient in its own event loop, with blocking methods and iterators."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.isawaitable(result):
                return self._run(result)
            return self._iterate(result)

        return call

    def close(self) -> None:
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, awaitable: Any) -> Any:
        async def wrap() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wrap(), self._loop).result()

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()

        async def following() -> Any:
            return await anext(items, end)

        try:
            while (item := self._run(following())) is not end:
                yield item
        finally:
            self._run(items.aclose())


def take_until_error(items: Iterator[Any], taken: list[Any]) -> None:
    """Appends items to ``taken`` until the iterator raises or ends."""
    for item in items:
        taken.append(item)  # noqa: PERF402 - extend() would lose them if the iterator raises
