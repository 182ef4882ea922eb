"""Keeps the engines within the memory that serving may use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.loaded_model import LoadedModel, ModelState
from multigrain_server.models.reference import ModelVersion
from multigrain_server.models.router import ModelRouter
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import ServingMetrics

_LOG = logging.getLogger(__name__)
_MIB = 1024 * 1024
_ROUND_SECONDS = 5.0


class MemoryBudget:
    """Measures engines and unloads the least recently used ones when they hold too much.

    Never the model that was just loaded, one that is being loaded or unloaded, or, unless
    unloaded models are loaded on demand, one that an alias or the default points at.

    Args:
        busy: whether a load or an unload of that version is under way.
        unload: unloads a version and returns once its engine has ended.
    """

    def __init__(
        self,
        config: ServingConfig,
        router: ModelRouter,
        metrics: ServingMetrics,
        busy: Callable[[ModelVersion], bool],
        unload: Callable[[ModelVersion], Awaitable[None]],
    ) -> None:
        self._limit = config.memory_budget_mib * _MIB
        self._on_demand = config.load_on_demand
        self._router = router
        self._metrics = metrics
        self._busy = busy
        self._unload = unload
        self._known: dict[ModelVersion, int] = {}

    async def watch(self) -> None:
        """Measures, and keeps within the budget, for ever: engines grow as they are used."""
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            try:
                await self._shrink(None)
            except MultigrainError as error:  # a full disk, say; the next round tries again
                _LOG.error("engines cannot be kept within their memory: %s", error.message)

    async def make_room(self, version: ModelVersion, leaving: Collection[ModelVersion]) -> None:
        """Before a load: unloads others if it is known not to fit beside them.

        Args:
            leaving: what it replaces, which counts no more.

        Raises:
            MultigrainError: WRONG_STATE if it does not fit even so.
        """
        size = self._known.get(version, 0)
        if self._limit and size:
            await self._shrink(version, leaving, size)

    async def settle(self, version: ModelVersion, leaving: Collection[ModelVersion]) -> None:
        """After a load: the same with what was measured.

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
            _LOG.info(
                "%s is unloaded: engines hold %d MiB of %d",
                victim, used // _MIB, self._limit // _MIB,
            )  # fmt: skip
            await self._unload(victim)

    def _measure(self) -> dict[ModelVersion, int]:
        sizes = {version: m.resident_bytes() for version, m in self._router.loaded.items()}
        found = {version: size for version, size in sizes.items() if size}
        self._known |= found
        for version, size in found.items():
            self._metrics.engine_memory(version.name, version.version, size)
        return found

    def _least_recently_used(
        self, apart_from: Collection[ModelVersion | None]
    ) -> ModelVersion | None:
        candidates = [
            (model.last_used, version)
            for version, model in self._router.loaded.items()
            if version not in apart_from
            and not self._busy(version)
            and self._may_go(version, model)
        ]
        return min(candidates)[1] if candidates else None

    def _may_go(self, version: ModelVersion, model: LoadedModel) -> bool:
        if model.state not in (ModelState.READY, ModelState.FAILED):
            return False
        if self._on_demand:
            return True
        return not self._router.pinned(version) and version != self._router.default_version()
