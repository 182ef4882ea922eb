"""The images that one engine has in work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from multigrain.engine.in_hand import Held
from multigrain_server.serving.engine_item import PendingItem


class EngineItems:
    """By the ids that the engine knows them by."""

    def __init__(self) -> None:
        self._items: dict[int, PendingItem] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_ns = 0

    def __len__(self) -> int:
        return len(self._items)

    async def wait_idle(self) -> None:
        """Waits until there is none."""
        await self._idle.wait()

    def add(self, item: PendingItem) -> None:
        if not self._items:
            self._last_ns = time.monotonic_ns()
        self._items[item.id] = item
        self._idle.clear()

    def finish(self, item_id: int) -> PendingItem | None:
        """Takes out an image that is answered."""
        self._last_ns = time.monotonic_ns()
        item = self._items.pop(item_id, None)
        if not self._items:
            self._idle.set()
        return item

    def leave(self, held: Iterable[Held]) -> list[PendingItem]:
        """Takes out all that somebody waits for; those in ``held`` are marked as suspects."""
        ids = {one.item_id for one in held}
        left = [item for item in self._items.values() if not item.future.done()]
        for item in left:
            item.suspect = item.id in ids
        self._items.clear()
        self._idle.set()
        return left

    def seconds_stuck(self, held: Iterable[Held]) -> float:
        """For how long nothing was answered although there is work, or one image has been in
        the engine's hands, whichever is longer."""
        now = time.monotonic_ns()
        since = [one.since_ns for one in held]
        if self._items:
            since.append(self._last_ns)
        return (now - min(since, default=now)) / 1e9
