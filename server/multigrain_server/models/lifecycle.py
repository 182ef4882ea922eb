"""Loading, draining and unloading of models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from multigrain.errors import MultigrainError
from multigrain_server.devices import EngineDevices
from multigrain_server.engines.launch import Launch
from multigrain_server.models.catalog import ModelCatalogue
from multigrain_server.models.eviction import MemoryBudget
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.reference import ModelReference, ModelVersion
from multigrain_server.models.registry import BundleEntry, BundleRegistry, verify
from multigrain_server.models.router import ModelRouter
from multigrain_server.models.state import LoadedRow, ModelStore
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import ServingMetrics

#: Health name of the service; it serves while the default model answers.
EMBEDDING_SERVICE = "multigrain.v1.EmbeddingService"
#: Health name of each model is this followed by its name.
MODEL_HEALTH_PREFIX = f"{EMBEDDING_SERVICE}/"


class ModelAnnouncer:
    """Compares with what was told last, and tells the difference."""

    def __init__(
        self,
        bundles: BundleRegistry,
        router: ModelRouter,
        catalogue: ModelCatalogue,
        metrics: ServingMetrics,
        on_health: Callable[[str, bool], None],
    ) -> None:
        self._bundles = bundles
        self._router = router
        self._catalogue = catalogue
        self._metrics = metrics
        self._on_health = on_health
        self._health: dict[str, bool] = {}

    def publish(self) -> None:
        """To be called after each change."""
        for entry in self._bundles.entries().values():
            state = self._catalogue.view(entry).state
            self._metrics.model_state(entry.version.name, entry.version.version, state.value)
        loaded = self._router.loaded
        now = dict.fromkeys(self._health, False)
        for version, model in loaded.items():
            name = MODEL_HEALTH_PREFIX + version.name
            now[name] = now.get(name, False) or model.state is ModelState.READY
        default = self._router.default_version()
        now[EMBEDDING_SERVICE] = default is not None and loaded[default].state is ModelState.READY
        for name, serving in now.items():
            if self._health.get(name) != serving:
                self._health[name] = serving
                self._on_health(name, serving)


# MERGED: Models on their way out: no requests any more, their last ones being answered.


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


# MERGED: Models that have an engine: how a version comes to one, and leaves it.


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


# MERGED: Loads what an earlier daemon had loaded.


_LOG = logging.getLogger(__name__)


class Restoration:
    """Known at once to be on their way, then loaded one after the other.

    Args:
        make: a model for a bundle and a runtime.
        lock: held while a version is loaded or unloaded.
    """

    def __init__(
        self,
        store: ModelStore,
        bundles: BundleRegistry,
        router: ModelRouter,
        make: Callable[[BundleEntry, str], LoadedModel],
        lock: Callable[[ModelVersion], asyncio.Lock],
    ) -> None:
        self._store = store
        self._bundles = bundles
        self._router = router
        self._make = make
        self._lock = lock
        self._models: list[LoadedModel] = []

    def announce(self) -> None:
        """Puts them in the routes, as LOADING."""
        for row in self._store.loaded():
            reference = ModelReference(row.version.name, row.version.version)
            try:
                entry = self._bundles.find(reference)
            except MultigrainError as error:
                _LOG.error("%s was loaded before and cannot be now: %s", reference, error.message)
                continue
            model = self._make(entry, row.runtime)
            self._router.loaded[row.version] = model
            self._models.append(model)

    async def run(self) -> None:
        """Side by side they would only share the cores.

        One that fails stays listed as FAILED, with the reason.
        """
        for model in self._models:
            async with self._lock(model.entry.version):
                if model.state is not ModelState.LOADING:
                    continue  # loaded or unloaded by a call meanwhile
                try:
                    await asyncio.to_thread(verify, model.entry)
                    await model.load()
                except MultigrainError as error:
                    model.fail(error.message)
                    _LOG.error("%s cannot be loaded again: %s", model.entry.version, error.message)
