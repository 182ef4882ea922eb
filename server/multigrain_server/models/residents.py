"""Models that have an engine: how a version comes to one, and leaves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from multigrain_server.models.departures import Departures
from multigrain_server.models.engine_devices import EngineDevices
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.memory_budget import MemoryBudget
from multigrain_server.models.reference import ModelVersion
from multigrain_server.models.registry import BundleEntry, verify
from multigrain_server.models.router import ModelRouter
from multigrain_server.models.store import LoadedRow, ModelStore
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.engine_child import Launch
from multigrain_server.serving.metrics import ServingMetrics


class Residents:
    """Keeps the routes, the notes for the next start and the memory budget true to the engines.

    Args:
        config: limits of serving.
        store: notes what is loaded.
        router: knows what is loaded.
        launch: starts the process of an engine.
        devices: where engines run.
        on_change: called after each change of what is loaded.
    """

    def __init__(
        self,
        config: ServingConfig,
        metrics: ServingMetrics,
        store: ModelStore,
        router: ModelRouter,
        launch: Launch,
        devices: EngineDevices,
        on_change: Callable[[], None],
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._store = store
        self._router = router
        self._launch = launch
        self._devices = devices
        self._on_change = on_change
        self._locks: dict[ModelVersion, asyncio.Lock] = {}
        self._departures = Departures(router, metrics, config.drain_seconds, on_change)
        self.budget = MemoryBudget(
            config,
            router,
            metrics,
            busy=lambda version: self.lock(version).locked(),
            unload=self._make_way,
        )

    def lock(self, version: ModelVersion) -> asyncio.Lock:
        """To be held by who lets a version in or out: one change of it at a time."""
        return self._locks.setdefault(version, asyncio.Lock())

    def model(self, entry: BundleEntry, runtime: str) -> LoadedModel:
        """One that has no engine yet."""
        return LoadedModel(
            entry,
            runtime,
            self._config,
            self._metrics,
            self._launch,
            self._devices,
            self._on_change,
        )

    async def let_in(self, entry: BundleEntry, runtime: str) -> None:
        """Starts an engine, or another one if the version has none that is ready, or none of this
        runtime; returns once it answers. An empty runtime: as it is, or as configured.

        Raises:
            MultigrainError: as ``ModelManager.load``; nothing has changed then.
        """
        version = entry.version
        current = self._router.loaded.get(version)
        if current is None:
            await self._let_in_new(entry, runtime or self._config.runtime)
        elif current.state is not ModelState.READY or runtime not in ("", current.runtime):
            await asyncio.to_thread(verify, entry)
            await current.switch_runtime(runtime or current.runtime)
            self._store.add_loaded(LoadedRow(version=version, runtime=current.runtime))

    async def let_out(self, version: ModelVersion) -> None:
        """Ends the engine once it has answered what it has; the default no longer means it."""
        model = self._router.loaded.get(version)
        if model is None:
            return
        self._store.remove_loaded(version)
        if self._router.default_reference == str(version):
            self._store.clear_default()
            self._router.refresh()
        await self._departures.take_out(version, model)

    def replaced_by(self, version: ModelVersion) -> list[ModelVersion]:
        """Older versions that are to go when this one answers."""
        return [] if self._config.keep_replaced_versions else self._router.older(version)

    async def retire(self, version: ModelVersion) -> None:
        """Lets a replaced version out, unless an alias or the default holds it."""
        async with self.lock(version):
            if not self._router.pinned(version):
                await self.let_out(version)

    async def end(self, drain_seconds: float) -> None:
        """Ends all engines; what was loaded stays noted."""
        models = (*self._router.loaded.values(), *self._router.draining.values())
        await asyncio.gather(*(model.end(drain_seconds) for model in models))
        await self._departures.finish()
        self._router.loaded.clear()

    async def _let_in_new(self, entry: BundleEntry, runtime: str) -> None:
        version = entry.version
        model = self.model(entry, runtime)
        self._router.loaded[version] = model
        replaced = self.replaced_by(version)
        try:
            await self.budget.make_room(version, replaced)
            await asyncio.to_thread(verify, entry)
            await model.load()
            await self.budget.settle(version, replaced)
            self._store.add_loaded(LoadedRow(version=version, runtime=runtime))
        except BaseException:
            await self._departures.take_out(version, model)
            raise

    async def _make_way(self, version: ModelVersion) -> None:
        """Lets a model out for another one; what points at it stays, and loads it again."""
        async with self.lock(version):
            model = self._router.loaded.get(version)
            if model is not None:
                self._store.remove_loaded(version)
                await self._departures.take_out(version, model)
