"""Keeps the engines within the memory that serving may use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.catalog import ModelCatalog
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.models.registry import ModelVersion

_log = structlog.get_logger(__name__)
_MIB = 1024 * 1024
_INTERVAL_SECONDS = 5.0


class MemoryBudget:
    """Measures engines and unloads the least recently used ones when they hold too much.

    Never the model that was just loaded, one that is being loaded or unloaded, or one that an
    alias or the default points at.

    Args:
        budget_mib: MiB that all engines together may hold; 0 = no limit.
        catalog: the loaded models.
        metrics: where the memory of each engine is shown.
        busy: whether a version is being loaded or unloaded.
        unload: unloads a version and returns once its engine has ended.
    """

    def __init__(
        self,
        budget_mib: int,
        catalog: ModelCatalog,
        metrics: ServingMetrics,
        busy: Callable[[ModelVersion], bool],
        unload: Callable[[ModelVersion], Awaitable[None]],
    ) -> None:
        self._limit = budget_mib * _MIB
        self._catalog = catalog
        self._metrics = metrics
        self._busy = busy
        self._unload = unload
        self._known: dict[ModelVersion, int] = {}

    async def watch(self) -> None:
        """Measures, and keeps within the budget, forever: engines grow as they are used."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            try:
                await self._shrink(None)
            except MultigrainError as error:  # for example a full disk; retried the next time
                _log.error("cannot enforce serving.memory_budget_mib", reason=error.message)

    async def make_room(self, version: ModelVersion, leaving: Collection[ModelVersion]) -> None:
        """Before a load: unloads others if the model is known not to fit beside them.

        Args:
            version: the model that is to be loaded.
            leaving: versions that it replaces, which do not count any more.

        Raises:
            MultigrainError: WRONG_STATE if it does not fit even then.
        """
        size = self._known.get(version, 0)
        if self._limit and size:
            await self._shrink(version, leaving, size)

    async def settle(self, version: ModelVersion, leaving: Collection[ModelVersion]) -> None:
        """After a load: the same with the measured size.

        Raises:
            MultigrainError: WRONG_STATE; the caller ends the engine that does not fit.
        """
        await self._shrink(version, leaving)

    async def _shrink(
        self, wanted: ModelVersion | None, leaving: Collection[ModelVersion] = (), more: int = 0
    ) -> None:
        while True:
            used = more + sum(
                size for version, size in self._measure().items() if version not in leaving
            )
            if not self._limit or used <= self._limit:
                return
            victim = self._least_recently_used({wanted, *leaving})
            if victim is None:
                if wanted is None:
                    return
                raise MultigrainError(
                    ErrorKind.WRONG_STATE,
                    f"with {wanted} the engines hold {used // _MIB} MiB, "
                    f"serving.memory_budget_mib is {self._limit // _MIB}, and no other model can "
                    "be unloaded for it: unload one, or allow more",
                )
            _log.info(
                "model unloaded to stay within the memory budget",
                model=str(victim),
                used_mib=used // _MIB,
                budget_mib=self._limit // _MIB,
            )
            await self._unload(victim)

    def _measure(self) -> dict[ModelVersion, int]:
        sizes = {version: m.resident_bytes() for version, m in self._catalog.loaded.items()}
        found = {version: size for version, size in sizes.items() if size}
        self._known |= found
        for version, size in found.items():
            self._metrics.engine_memory(version.name, version.version, size)
        return found

    def _least_recently_used(self, kept: Collection[ModelVersion | None]) -> ModelVersion | None:
        candidates = [
            (model.last_used, version)
            for version, model in self._catalog.loaded.items()
            if version not in kept and not self._busy(version) and self._evictable(version, model)
        ]
        return min(candidates)[1] if candidates else None

    def _evictable(self, version: ModelVersion, model: LoadedModel) -> bool:
        return (
            model.state in (ModelState.READY, ModelState.FAILED)
            and not self._catalog.pinned(version)
            and version != self._catalog.default_version()
        )
