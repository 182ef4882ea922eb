"""Models on their way out: no requests any more, their last ones being answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.models.reference import ModelVersion
from multigrain_server.models.router import ModelRouter
from multigrain_server.serving.metrics import ServingMetrics


class Departures:
    """Ends models by tasks of its own: a caller may go away, what has begun is finished.

    Args:
        drain_seconds: that requests in flight have.
        on_change: called after each change of what is loaded.
    """

    def __init__(
        self,
        router: ModelRouter,
        metrics: ServingMetrics,
        drain_seconds: float,
        on_change: Callable[[], None],
    ) -> None:
        self._router = router
        self._metrics = metrics
        self._drain_seconds = drain_seconds
        self._on_change = on_change
        self._tasks: set[asyncio.Task[None]] = set()

    async def take_out(self, version: ModelVersion, model: LoadedModel) -> None:
        """Takes a model out of the routes, so that what comes from now on goes elsewhere or is
        refused; returns when it has ended."""
        del self._router.loaded[version]
        self._router.draining[version] = model
        task = asyncio.create_task(self._end(version, model))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def finish(self) -> None:
        """Waits until all have ended."""
        await asyncio.gather(*self._tasks)

    async def _end(self, version: ModelVersion, model: LoadedModel) -> None:
        await model.end(self._drain_seconds)
        if self._router.draining.get(version) is model:
            del self._router.draining[version]
            self._metrics.engine_gone(version.name, version.version)
        self._on_change()
