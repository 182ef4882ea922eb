"""Loads, switches, drains and names models. The daemon's one owner of engines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from multigrain.engine.runtime.names import RUNTIMES
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.database import Database
from multigrain_server.models.announcer import ModelAnnouncer
from multigrain_server.models.catalogue import ModelCatalogue
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.reference import ModelReference, ModelVersion, check_name
from multigrain_server.models.registry import BundleEntry, BundleRegistry, verify
from multigrain_server.models.router import ModelRouter
from multigrain_server.models.store import LoadedRow, ModelStore
from multigrain_server.models.users import ModelUsers, NoUsers
from multigrain_server.models.view import ModelView
from multigrain_server.serving.admission import Admission
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import ServingMetrics
from multigrain_server.serving.response_cache import ResponseCache

_LOG = logging.getLogger(__name__)


class ModelManager:
    """See the module. All methods are for the event loop's thread.

    Args:
        models_dir: folder of bundles.
        database: with the schema of ``multigrain_server.models.store``.
        config: limits of serving.
        registry: where metrics are registered.
        on_health: called with a health name and whether it serves, at each change.
        users: who else needs a model.
    """

    def __init__(
        self,
        models_dir: Path,
        database: Database,
        config: ServingConfig,
        registry: CollectorRegistry,
        on_health: Callable[[str, bool], None],
        users: ModelUsers | None = None,
    ) -> None:
        self.config = config
        self.metrics = ServingMetrics(registry)
        self.admission = Admission(config, self.metrics)
        self.cache = ResponseCache(config.cache_bytes, self.metrics)
        self.bundles = BundleRegistry(models_dir)
        self._users = users or NoUsers()
        self._store = ModelStore(database)
        self._router = ModelRouter(self._store, self.bundles)
        self.catalogue = ModelCatalogue(self.bundles, self._router, config.max_batch)
        self._announcer = ModelAnnouncer(
            self.bundles, self._router, self.catalogue, self.metrics, on_health
        )
        self._locks: dict[ModelVersion, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to load what was loaded before; returns at once."""
        self.bundles.clean()
        models = []
        for row in self._store.loaded():
            reference = ModelReference(row.version.name, row.version.version)
            try:
                entry = self.bundles.find(reference)
            except MultigrainError as error:
                _LOG.error("%s was loaded before and cannot be now: %s", reference, error.message)
                continue
            model = LoadedModel(
                entry, row.runtime, self.config, self.metrics, self._announcer.publish
            )
            self._router.loaded[row.version] = model
            models.append(model)
        self._announcer.publish()
        if models:
            self._spawn(self._restore(models))

    async def close(self, drain_seconds: float) -> None:
        """Refuses new images, lets those in work finish, ends all engines.

        What is loaded stays noted, so that the next start loads it again.
        """
        self.admission.drain()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        models = (*self._router.loaded.values(), *self._router.draining.values())
        await asyncio.gather(*(model.end(drain_seconds) for model in models))
        await asyncio.gather(*self._ending)
        self._router.loaded.clear()
        self._announcer.publish()

    def rescan(self) -> None:
        """Looks at the folder again, after a bundle was written there."""
        self._announcer.publish()

    def bundle_path(self, model: str) -> Path:
        """Folder of "name" (newest on disk), "name@version" or an alias. Raises NOT_FOUND."""
        return self.catalogue.find(model).path

    def route(self, model: str) -> LoadedModel:
        """The model that answers a request; see :meth:`ModelRouter.route`."""
        return self._router.route(model)

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
        entry = self.catalogue.find(model)
        version = entry.version
        async with self._lock(version):
            current = self._router.loaded.get(version)
            if current is None:
                await self._load_new(entry, runtime or self.config.runtime)
            elif current.state is not ModelState.READY or runtime not in ("", current.runtime):
                await self._verify(entry)
                await current.switch_runtime(runtime or current.runtime)
                self._store.add_loaded(LoadedRow(version, current.runtime))
            if make_default:
                self._store.set_default(model)
                self._router.refresh()
        self._announcer.publish()
        if not self.config.keep_replaced_versions:
            self._retire_older(version)
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
        self._refuse_aliased(version, "unloaded")
        async with self._lock(version):
            await self._unload(version)
        return self.catalogue.view(self.bundles.find(ModelReference(version.name, version.version)))

    def set_alias(self, alias: str, model: str) -> str:
        """Points ``alias`` at a loaded version; "" removes it. Returns "name@version" or "".

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE (not loaded).
        """
        check_name(alias, "alias")
        if not model:
            if not self._store.remove_alias(alias):
                raise MultigrainError(ErrorKind.NOT_FOUND, f"no alias {alias}")
            self._router.refresh()
            return ""
        if self.bundles.has_name(alias):
            raise MultigrainError.field("alias", f"{alias} is the name of a model")
        exporter = self._users.exporter_of(alias)
        if exporter:
            raise MultigrainError.field(
                "alias", f"{alias} is the name of a model that job {exporter} will write"
            )
        reference = ModelReference.parse(model)
        version = self._router.version_of(reference)
        if version is None or self._router.loaded[version].state is ModelState.LOADING:
            known = self.catalogue.find(model).version
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"{known} is not loaded, and an alias must always answer: LoadModel first",
            )
        self._store.set_alias(alias, version)
        self._router.refresh()
        return str(version)

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
        async with self._lock(version):
            if version in self._router.loaded:
                raise MultigrainError(
                    ErrorKind.WRONG_STATE, f"{version} is loaded: UnloadModel first"
                )
            self._refuse_aliased(version, "deleted")
            reader = self._users.reader_of(entry.path)
            if reader:
                raise MultigrainError(
                    ErrorKind.WRONG_STATE,
                    f"{version} is in use: job {reader} reads it; wait for its end, or cancel it",
                )
            await asyncio.to_thread(self.bundles.remove, version)
            self.metrics.model_state(version.name, version.version, None)

    def _model(self, entry: BundleEntry, runtime: str) -> LoadedModel:
        return LoadedModel(entry, runtime, self.config, self.metrics, self._announcer.publish)

    async def _load_new(self, entry: BundleEntry, runtime: str) -> None:
        version = entry.version
        model = self._model(entry, runtime)
        self._router.loaded[version] = model
        try:
            await self._verify(entry)
            await model.load()
        except BaseException:
            del self._router.loaded[version]
            self._announcer.publish()
            raise
        self._store.add_loaded(LoadedRow(version, runtime))

    async def _verify(self, entry: BundleEntry) -> None:
        await asyncio.to_thread(verify, entry)

    async def _restore(self, models: list[LoadedModel]) -> None:
        """Loads one after the other: side by side they would only share the cores.

        One that fails stays listed as FAILED, with the reason.
        """
        for model in models:
            async with self._lock(model.entry.version):
                if model.state is not ModelState.LOADING:
                    continue  # loaded or unloaded by a call meanwhile
                try:
                    await self._verify(model.entry)
                    await model.load()
                except MultigrainError as error:
                    model.fail(error.message)
                    _LOG.error("%s cannot be loaded again: %s", model.entry.version, error.message)

    def _retire_older(self, version: ModelVersion) -> None:
        for other in list(self._router.loaded):
            older = other.name == version.name and other.version < version.version
            if older and not self._router.pinned(other):
                self._spawn(self._retire(other))

    async def _retire(self, version: ModelVersion) -> None:
        async with self._lock(version):
            if not self._router.pinned(version):
                await self._unload(version)

    async def _unload(self, version: ModelVersion) -> None:
        # Out of the routes first: what comes from now on goes elsewhere or is refused.
        model = self._router.loaded.pop(version, None)
        if model is None:
            return
        self._store.remove_loaded(version)
        if self._router.default_reference == str(version):
            self._store.clear_default()
            self._router.refresh()
        self._router.draining[version] = model
        task = asyncio.create_task(self._end(version, model))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        # The caller may go away; what has begun is finished all the same.
        await asyncio.shield(task)

    async def _end(self, version: ModelVersion, model: LoadedModel) -> None:
        await model.end(self.config.drain_seconds)
        if self._router.draining.get(version) is model:
            del self._router.draining[version]
        self._announcer.publish()

    def _refuse_aliased(self, version: ModelVersion, verb: str) -> None:
        aliases = self._router.aliases_of(version)
        if aliases:
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"{version} cannot be {verb} while alias {', '.join(aliases)} points at it: "
                "SetAlias to another version, or to nothing, first",
            )

    def _lock(self, version: ModelVersion) -> asyncio.Lock:
        return self._locks.setdefault(version, asyncio.Lock())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
