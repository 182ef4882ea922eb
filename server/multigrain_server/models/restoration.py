"""Loads what an earlier daemon had loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from multigrain.errors import MultigrainError
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.reference import ModelReference, ModelVersion
from multigrain_server.models.registry import BundleEntry, BundleRegistry, verify
from multigrain_server.models.router import ModelRouter
from multigrain_server.models.store import ModelStore

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
