"""The content of /metrics, encoded in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from multigrain_server.shared_page import PageThread, SharedPage

# Formats that are kept; clients choose among a few.
_FORMATS = 8


class MetricsPage:
    """Encodes the metrics; with many jobs that takes longer than calls should wait.

    Args:
        registry: the metrics.
        prepare: called on the event loop before: takes what is collected from its state.
        thread: collects and encodes.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        prepare: Callable[[], Awaitable[None]],
        thread: PageThread,
    ) -> None:
        self._registry = registry
        self._prepare = prepare
        self._thread = thread
        self._pages: dict[str, SharedPage[bytes]] = {}
        # One format after the other: what was prepared is used once.
        self._rendering = asyncio.Lock()

    async def get(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type.

        Args:
            accept: the header of the request.
        """
        encode, content_type = choose_encoder(accept)
        page = self._pages.get(content_type)
        if page is None:
            if len(self._pages) >= _FORMATS:
                self._pages.clear()
            page = SharedPage(partial(self._render, encode))
            self._pages[content_type] = page
        return await page.get(), content_type

    async def _render(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        async with self._rendering:
            await self._prepare()
            return await self._thread.run(partial(encode, self._registry))
