"""Loads, unloads, restores, names and deletes models. The daemon's one owner of engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import structlog

from multigrain.engine.settings import RUNTIMES
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.asyncio_utils import background_task, to_thread_uncancellable
from multigrain_server.devices import EngineDevices, Leases
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.launch import Launch
from multigrain_server.engines.launch import launch as launch_process
from multigrain_server.models.archive import BundleImport
from multigrain_server.models.catalog import ModelCatalog, ModelView
from multigrain_server.models.download import BundleArchive, export_bundle
from multigrain_server.models.eviction import MemoryBudget
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.models.registry import (
    BundleEntry,
    BundleRegistry,
    ModelReference,
    ModelVersion,
    check_name,
    verify,
)
from multigrain_server.models.state import LoadedRow, ServingState
from multigrain_server.models.transfers import Transfers
from multigrain_server.service_names import EMBEDDING
from multigrain_server.storage_errors import storage_errors

_log = structlog.get_logger(__name__)

_MAX_SERVED = 1000


class ModelReferences(Protocol):
    """Jobs that need models. Answers are job ids, "" for none."""

    def reader_of(self, folder: Path) -> str:
        """A job that reads files in a folder."""
        ...

    def exporter_of(self, name: str) -> str:
        """A job that will write a model of this name."""
        ...


class ModelManager:
    """Changes which models are loaded. All methods are for the event loop's thread.

    Args:
        models_dir: folder of bundles.
        state: the file that keeps what is loaded; see :class:`ServingState`.
        config: limits of serving.
        metrics: of serving.
        on_health: called with a health name and whether it serves, at each change.
        references: jobs that need models.
        launch: starts the process of an engine.
        leases: where engines on a GPU or NPU find one that no job has.

    Attributes:
        catalog: which models there are, and which of them a request means.
        transfers: imports and downloads that run.
    """

    def __init__(
        self,
        models_dir: Path,
        state: Path,
        config: ServingConfig,
        metrics: ServingMetrics,
        on_health: Callable[[str, bool], None],
        references: ModelReferences,
        launch: Launch = launch_process,
        leases: Leases | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._on_health = on_health
        self._references = references
        self._launch = launch
        self._devices = EngineDevices(config.device, leases)
        self._bundles = BundleRegistry(models_dir)
        self._state = ServingState(state)
        self.catalog = ModelCatalog(self._bundles, self._state, config.max_batch)
        self._budget = MemoryBudget(
            config.memory_budget_mib,
            self.catalog,
            metrics,
            busy=lambda version: self._lock(version).locked(),
            unload=self._unload_locked,
        )
        self.transfers = Transfers(config)
        self._locks: dict[ModelVersion, asyncio.Lock] = {}
        # Until each of serving.models has been tried.
        self._starting = bool(config.models)
        self._on_first_loaded: Callable[[], None] = lambda: None
        self._health: dict[str, bool] = {}
        # Canceled when the daemon stops.
        self._background: set[asyncio.Task[None]] = set()
        # Never canceled: an engine that drains is always ended.
        self._drains: set[asyncio.Task[None]] = set()

    async def start(self, on_loaded: Callable[[], None] = lambda: None) -> None:
        """Begins to load the models of ``serving.models`` and those that an earlier daemon had
        loaded; returns at once.

        Args:
            on_loaded: called when each of ``serving.models`` answers or has failed.
        """
        self._on_first_loaded = on_loaded
        self._bundles.clean()
        restored = self._announce_restored()
        self.publish()
        self._spawn(self._load_first(restored))
        self._spawn(self._budget.watch())

    async def close(self, drain_seconds: float) -> None:
        """Lets images in flight finish and ends all engines.

        The state file keeps what is loaded, so that the next start loads it again.
        """
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(model.end(drain_seconds) for model in self.catalog.running()))
        await asyncio.gather(*self._drains)
        self.catalog.clear()
        self.publish()

    def publish(self) -> None:
        """Updates the metrics and health of all models. To be called after each change, also
        when a job has written a bundle.

        The embedding service is healthy while the default model answers, but not before each of
        ``serving.models`` has been tried. Each model has a health
        name of its own, the service's followed by "/" and the model's.
        """
        for view in self.catalog.views():
            version = view.entry.version
            self._metrics.model_state(version.name, version.version, view.state.value)
        now = dict.fromkeys(self._health, False)
        for version, model in self.catalog.loaded.items():
            name = f"{EMBEDDING}/{version.name}"
            now[name] = now.get(name, False) or model.state is ModelState.READY
        answers = self.catalog.default_state() is ModelState.READY
        now[EMBEDDING] = answers and not self._starting
        for name, serving in now.items():
            if self._health.get(name) != serving:
                self._health[name] = serving
                self._on_health(name, serving)

    async def load(self, model: str, runtime: str = "", *, make_default: bool = False) -> ModelView:
        """Starts an engine for a version and, once it answers, lets its name mean it.

        An unversioned name means the newest version on disk. Older loaded versions are then
        drained in the background, unless ``keep_replaced_versions``, an alias or the default
        holds them. A loaded version gets a new engine if it is not ready or has another runtime.

        Args:
            model: "name", "name@version" or an alias.
            runtime: "" = the present one, or else the configured one.
            make_default: whether requests that name no model mean it.

        Raises:
            MultigrainError: NOT_FOUND, CHECKPOINT, UNSUPPORTED, UNAVAILABLE; nothing has
                changed then.
        """
        if runtime not in ("", *RUNTIMES):
            raise MultigrainError.field(
                "runtime", f"{runtime[:80]!r} is unknown: use one of {', '.join(RUNTIMES)}"
            )
        version = self.catalog.find(model).version
        async with self._lock(version):
            # It may have been deleted while this waited.
            entry = self._bundles.find(ModelReference(version.name, version.version))
            current = self.catalog.loaded.get(version)
            if current is None:
                await self._load_new(entry, runtime or self._config.runtime)
            elif current.state is not ModelState.READY or runtime not in ("", current.runtime):
                await asyncio.to_thread(verify, entry)
                await current.switch_runtime(runtime or current.runtime)
                self._state.add_loaded(_row(current))
            if make_default:
                self._state.set_default(model)
        self.publish()
        for older in self._replaced_by(version):
            self._spawn(self._retire(older))
        return self.catalog.describe(entry)

    async def unload(self, model: str) -> ModelView:
        """Lets images in flight finish and ends the engine; harmless if it is not loaded.

        Raises:
            MultigrainError: NOT_FOUND; WRONG_STATE while an alias points at it.
        """
        reference = ModelReference.parse(model)
        version = self.catalog.loaded_version(reference)
        if version is None:
            return self.catalog.view(model)
        async with self._lock(version):
            self._refuse_if_aliased(version, "unloaded")
            await self._unload(version)
        return self.catalog.view(str(version))

    def set_alias(self, alias: str, model: str) -> str:
        """Points ``alias`` at a loaded version; "" removes it. Returns "name@version" or "".

        Nothing here awaits, so that what is checked still holds when the alias is set.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE (not loaded).
        """
        check_name(alias, "alias")
        if not model:
            if not self._state.remove_alias(alias):
                raise MultigrainError(ErrorKind.NOT_FOUND, f"no alias {alias}")
            return ""
        if self._bundles.has_name(alias):
            raise MultigrainError.field("alias", f"{alias} is the name of a model")
        exporter = self._references.exporter_of(alias)
        if exporter:
            raise MultigrainError.field(
                "alias", f"{alias} is the name of a model that job {exporter} will write"
            )
        version = self.catalog.loaded_version(ModelReference.parse(model))
        if version is None or not self._stays_loaded(version):
            known = self.catalog.find(model).version
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"{known} is not loaded, and an alias must always answer: LoadModel first",
            )
        self._state.set_alias(alias, version)
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
        entry = self.catalog.refused(model) or self._bundles.find(reference)
        version = entry.version
        async with self._lock(version):
            if version in self.catalog.loaded:
                raise MultigrainError(
                    ErrorKind.WRONG_STATE, f"{version} is loaded: UnloadModel first"
                )
            self._refuse_if_aliased(version, "deleted")
            reader = self._references.reader_of(entry.path)
            if reader:
                raise MultigrainError(
                    ErrorKind.WRONG_STATE,
                    f"{version} is in use: job {reader} reads it; wait for its end, or cancel it",
                )
            with storage_errors(f"{version} cannot be deleted", "models/ of the data directory"):
                await to_thread_uncancellable(self._bundles.remove, version)
            self._metrics.model_state(version.name, version.version, None)

    def import_bundle(
        self,
        name: str,
        version: int,
        sha256: str,
        describe: Callable[[ModelView], object] = lambda view: view,
    ) -> BundleImport:
        """Receives a bundle as an archive; see :class:`BundleImport`."""

        def view(entry: BundleEntry) -> ModelView:
            self.publish()
            return self.catalog.describe(entry)

        return BundleImport(
            self._bundles,
            self.catalog.is_alias,
            describe,
            view,
            max_bytes=self._config.max_bundle_bytes,
            name=name,
            version=version,
            sha256=sha256,
        )

    def export_bundle(self, model: str) -> AbstractAsyncContextManager[BundleArchive]:
        """Sends a bundle as an archive; see :func:`export_bundle`."""
        return export_bundle(self.catalog.find(model))

    # Loading

    def _lock(self, version: ModelVersion) -> asyncio.Lock:
        """Held while a version is loaded, unloaded or deleted: one change of it at a time."""
        return self._locks.setdefault(version, asyncio.Lock())

    def _model(self, entry: BundleEntry, runtime: str) -> LoadedModel:
        """A model that has no engine yet."""
        return LoadedModel(
            entry,
            runtime,
            self._config,
            self._metrics,
            self._launch,
            self._devices,
            self.publish,
        )

    async def _load_new(self, entry: BundleEntry, runtime: str) -> None:
        version = entry.version
        model = self._model(entry, runtime)
        self.catalog.add(model)
        replaced = self._replaced_by(version)
        try:
            await self._budget.make_room(version, replaced)
            await asyncio.to_thread(verify, entry)
            await model.load()
            await self._budget.settle(version, replaced)
            self._state.add_loaded(_row(model))
        except BaseException:
            await self._drain(model)
            raise

    async def _load_first(self, restored: list[LoadedModel]) -> None:
        """Loads ``serving.models``, then what an earlier daemon had loaded besides.

        A model that cannot be loaded does not stop the others: a replica that serves some of its
        models is worth more than none, and the log and the metrics name the one that is missing.
        """
        for number, name in enumerate(self._config.models):
            try:
                view = await self.load(name, make_default=number == 0)
            except MultigrainError as error:
                _log.error(
                    "model of serving.models cannot be loaded", model=name, reason=error.message
                )
            else:
                _log.info(
                    "model of serving.models loaded",
                    model=str(view.entry.version),
                    default=number == 0,
                )
        self._starting = False
        self.publish()
        self._on_first_loaded()
        await self._restore(restored)

    def _announce_restored(self) -> list[LoadedModel]:
        """Lists the models that an earlier daemon had loaded as LOADING, and returns them."""
        models = []
        for row in self._state.loaded():
            try:
                entry = self._bundles.find(ModelReference(row.version.name, row.version.version))
            except MultigrainError as error:
                _log.error(
                    "model of the last run not found",
                    model=str(row.version),
                    reason=error.message,
                )
                continue
            model = self._model(entry, row.runtime)
            self.catalog.add(model)
            models.append(model)
        return models

    async def _restore(self, models: list[LoadedModel]) -> None:
        """Loads them one after the other: in parallel they would only share the cores.

        One that fails stays listed as FAILED, with the reason.
        """
        for model in models:
            async with self._lock(model.entry.version):
                if model.state is not ModelState.LOADING:
                    continue  # loaded or unloaded by a call meanwhile
                try:
                    await asyncio.to_thread(verify, model.entry)
                    await model.load()
                    self._note_served(model)
                except MultigrainError as error:
                    model.fail(error.message)
                    _log.error(
                        "model of the last run cannot be loaded",
                        model=str(model.entry.version),
                        reason=error.message,
                    )

    def _note_served(self, model: LoadedModel) -> None:
        """Stores which runtime was chosen now. It only helps, so a full disk is no failure."""
        try:
            self._state.add_loaded(_row(model))
        except MultigrainError as error:
            _log.warning(
                "the chosen runtime cannot be stored",
                model=str(model.entry.version),
                reason=error.message,
            )

    # Unloading

    async def _unload(self, version: ModelVersion) -> None:
        """Ends the engine once it has answered its images; the default no longer means it."""
        model = self.catalog.loaded.get(version)
        if model is None:
            return
        self._state.remove_loaded(version)
        if self._state.default == str(version):
            self._state.clear_default()
        await self._drain(model)

    async def _unload_locked(self, version: ModelVersion) -> None:
        async with self._lock(version):
            await self._unload(version)

    def _replaced_by(self, version: ModelVersion) -> list[ModelVersion]:
        """Older versions that are unloaded when this one answers."""
        return [] if self._config.keep_replaced_versions else self.catalog.older(version)

    async def _retire(self, version: ModelVersion) -> None:
        """Unloads a replaced version, unless an alias or the default holds it."""
        async with self._lock(version):
            if not self.catalog.pinned(version):
                await self._unload(version)

    async def _drain(self, model: LoadedModel) -> None:
        """Sends new requests elsewhere, lets those in flight finish, and ends the engine.

        A canceled caller does not stop it.
        """
        self.catalog.begin_draining(model)
        task = background_task(self._end(model))
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)
        await asyncio.shield(task)

    async def _end(self, model: LoadedModel) -> None:
        await model.end(self._config.drain_seconds)
        if self.catalog.end_draining(model):
            version = model.entry.version
            self._metrics.engine_gone(version.name, version.version)
        self.publish()

    # Aliases

    def _stays_loaded(self, version: ModelVersion) -> bool:
        # In the state file: an engine that has just started may yet turn out to be too large.
        loading = self.catalog.loaded[version].state is ModelState.LOADING
        return not loading and self._state.has_loaded(version)

    def _refuse_if_aliased(self, version: ModelVersion, verb: str) -> None:
        """Raises WRONG_STATE while an alias points at the version."""
        aliases = self.catalog.aliases_of(version)
        if aliases:
            raise MultigrainError(
                ErrorKind.WRONG_STATE,
                f"{version} cannot be {verb} while alias {', '.join(aliases)} points at it: "
                "SetAlias to another version, or to nothing, first",
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = background_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _row(model: LoadedModel) -> LoadedRow:
    """What the next start of the daemon, and ``multigrain-server doctor``, should know."""
    served = model.runtime_description[:_MAX_SERVED]
    return LoadedRow(version=model.entry.version, runtime=model.runtime, served=served)
