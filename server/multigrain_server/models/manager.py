"""Loads, switches, drains and names models. The daemon's one owner of engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from multigrain.engine.settings import RUNTIMES
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.asyncio_utils import to_the_end
from multigrain_server.devices import EngineDevices, Leases
from multigrain_server.engines.launch import Launch
from multigrain_server.engines.launch import launch as launch_process
from multigrain_server.models.aliases import ModelLabels, ModelUsers, NoUsers
from multigrain_server.models.catalog import ModelCatalogue, ModelView
from multigrain_server.models.lifecycle import ModelAnnouncer, Residents, Restoration
from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.models.on_demand import OnDemand
from multigrain_server.models.reference import ModelReference
from multigrain_server.models.registry import BundleRegistry
from multigrain_server.models.router import ModelRouter
from multigrain_server.models.state import ModelStore
from multigrain_server.serving.admission import Admission
from multigrain_server.serving.cache import ResponseCache
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import ServingMetrics
from multigrain_server.storage_errors import stored


class ModelManager:
    """See the module. All methods are for the event loop's thread.

    Args:
        models_dir: folder of bundles.
        state: the file that keeps what is loaded; see ``ModelStore``.
        config: limits of serving.
        registry: where metrics are registered.
        on_health: called with a health name and whether it serves, at each change.
        users: who else needs a model.
        launch: starts the process of an engine.
        leases: where engines on a GPU or NPU find one that no job has.
    """

    def __init__(
        self,
        models_dir: Path,
        state: Path,
        config: ServingConfig,
        registry: CollectorRegistry,
        on_health: Callable[[str, bool], None],
        users: ModelUsers | None = None,
        launch: Launch = launch_process,
        leases: Leases | None = None,
    ) -> None:
        self.config = config
        self.metrics = ServingMetrics(registry)
        self.admission = Admission(config, self.metrics)
        self.cache = ResponseCache(config.cache_bytes, self.metrics)
        self.bundles = BundleRegistry(models_dir)
        self._users = users or NoUsers()
        self._store = ModelStore(state)
        self._router = ModelRouter(self._store, self.bundles)
        self.catalogue = ModelCatalogue(self.bundles, self._router, config.max_batch)
        self._announcer = ModelAnnouncer(
            self.bundles, self._router, self.catalogue, self.metrics, on_health
        )
        self._labels = ModelLabels(
            self._store,
            self._router,
            self.bundles,
            self.catalogue,
            self._users,
            on_demand=config.load_on_demand,
        )
        self._residents = Residents(
            config,
            self.metrics,
            self._store,
            self._router,
            launch,
            EngineDevices(config.device, leases),
            self._announcer.publish,
        )
        self._restoration = Restoration(
            self._store,
            self.bundles,
            self._router,
            self._residents.model,
            self._residents.lock,
        )
        self._on_demand = OnDemand(self.load, self._spawn, config.restart_backoff_max_seconds)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to load what was loaded before; returns at once."""
        self.bundles.clean()
        self._restoration.announce()
        self._announcer.publish()
        self._spawn(self._restoration.run())
        self._spawn(self._residents.budget.watch())

    async def close(self, drain_seconds: float) -> None:
        """Refuses new images, lets those in work finish, ends all engines.

        What is loaded stays noted, so that the next start loads it again.
        """
        self.admission.drain()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._residents.end(drain_seconds)
        self._announcer.publish()

    def rescan(self) -> None:
        """Looks at the folder again, after a bundle was written there."""
        self._announcer.publish()

    def bundle_path(self, model: str) -> Path:
        """Folder of "name" (newest on disk), "name@version" or an alias. Raises NOT_FOUND."""
        return self.catalogue.find(model).path

    def route(self, model: str) -> LoadedModel:
        """The model that answers a request; see :meth:`ModelRouter.route`."""
        if self.config.load_on_demand:
            version = self._router.unloaded(model)
            if version is not None:
                raise self._on_demand.ask(version)
        found = self._router.route(model)
        found.last_used = time.monotonic()
        return found

    def view(self, model: str) -> ModelView:
        """Raises NOT_FOUND."""
        return self.catalogue.view(self.catalogue.find(model))

    async def load(self, model: str, runtime: str = "", *, make_default: bool = False) -> ModelView:
        """Starts an engine for a version and, once it answers, lets its name mean it.

        Of an unversioned name the newest version on disk is loaded. Older loaded versions are
        then drained in the background, unless ``keep_replaced_versions``, an alias or the
        default holds them.

        Raises:
            MultigrainError: NOT_FOUND, CHECKPOINT, UNSUPPORTED, UNAVAILABLE; nothing has
                changed then.
        """
        if runtime not in ("", *RUNTIMES):
            raise MultigrainError.field(
                "runtime", f"{runtime[:80]!r} is unknown: use one of {', '.join(RUNTIMES)}"
            )
        version = self.catalogue.find(model).version
        async with self._residents.lock(version):
            # It may have been deleted while this waited.
            entry = self.bundles.find(ModelReference(version.name, version.version))
            await self._residents.let_in(entry, runtime)
            if make_default:
                self._store.set_default(model)
                self._router.refresh()
        self._announcer.publish()
        for older in self._residents.replaced_by(version):
            self._spawn(self._residents.retire(older))
        return self.catalogue.view(entry)

    async def unload(self, model: str) -> ModelView:
        """Lets images in work finish and ends the engine; harmless if it is not loaded.

        Raises:
            MultigrainError: NOT_FOUND; WRONG_STATE while an alias points at it.
        """
        reference = ModelReference.parse(model)
        version = self._router.version_of(reference)
        if version is None:
            return self.catalogue.view(self.catalogue.find(model))
        async with self._residents.lock(version):
            self._labels.refuse(version, "unloaded")
            await self._residents.let_out(version)
        return self.catalogue.view(self.bundles.find(ModelReference(version.name, version.version)))

    def set_alias(self, alias: str, model: str) -> str:
        """See :meth:`ModelLabels.set`."""
        return self._labels.set(alias, model)

    async def delete(self, model: str) -> None:
        """Removes a version from disk.

        Raises:
            MultigrainError: INVALID_FIELD without a version; NOT_FOUND; WRONG_STATE if it is
                loaded, has an alias, or a job that has not ended needs it.
        """
        reference = ModelReference.parse(model)
        if reference.version is None:
            raise MultigrainError.field("model", 'must state the version, as "name@version"')
        entry = self.bundles.find(reference)
        version = entry.version
        async with self._residents.lock(version):
            if version in self._router.loaded:
                raise MultigrainError(
                    ErrorKind.WRONG_STATE, f"{version} is loaded: UnloadModel first"
                )
            self._labels.refuse(version, "deleted")
            reader = self._users.reader_of(entry.path)
            if reader:
                raise MultigrainError(
                    ErrorKind.WRONG_STATE,
                    f"{version} is in use: job {reader} reads it; wait for its end, or cancel it",
                )
            with stored(f"{version} cannot be deleted", "models/ of the data directory"):
                await to_the_end(self.bundles.remove, version)
            self.metrics.model_state(version.name, version.version, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
