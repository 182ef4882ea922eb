"""How long to wait before an engine is started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.engine import EngineProcess, PendingItem
from multigrain_server.engines.quarantine import RefusedImages


class Backoff:
    """Nothing for the first start, then ``first`` seconds, doubled each time up to ``longest``."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._starts = 0

    def next(self) -> float:
        """Seconds to wait before the start that comes now."""
        doublings = self._starts - 1
        self._starts += 1
        # Not 2**n for any n: that number outgrows a float.
        return min(self._first * 2 ** min(doublings, 30), self._longest) if doublings >= 0 else 0.0

    def forgive(self) -> None:
        """Takes back the last start: its end has a known reason that will not come again."""
        self._starts = max(0, self._starts - 1)

    def reset(self) -> None:
        """After a time without trouble."""
        self._starts = 0


# MERGED: Replaces a model's engine whenever it ends by itself, and saves the images it had.


_LOG = logging.getLogger(__name__)


class KeptModel(ABC):
    """The side of a model that its keeper sees."""

    @abstractmethod
    async def start_engine(self) -> EngineProcess:
        """Raises MultigrainError."""

    @abstractmethod
    def engine_ended(self, reason: str) -> None:
        """There is none from now on."""

    @abstractmethod
    def engine_delayed(self, reason: str) -> None:
        """There is still none."""

    @abstractmethod
    def engine_replaced(self, engine: EngineProcess) -> None:
        """That one answers from now on."""


class EngineKeeper:
    """Watches an engine and its successors until :meth:`close`.

    When an engine dies, the images that only waited in it go to the next one. Those in its hands
    are tried there first, one by one and before anything else: an image that an engine dies of
    while it holds no other is refused, now and later, and the others are answered. An image is
    therefore never blamed for what its neighbours, or a signal from outside, did.

    Args:
        model: whose engine it is.
        engine: the first one.
        backoff: pauses between starts.
        stable_seconds: an engine that lived longer ends a row of failures.
        refused: where images that end engines are noted.
    """

    def __init__(
        self,
        label: str,
        model: KeptModel,
        engine: EngineProcess,
        backoff: Backoff,
        stable_seconds: float,
        refused: RefusedImages,
    ) -> None:
        self._label = label
        self._model = model
        self._backoff = backoff
        self._stable_seconds = stable_seconds
        self._refused = refused
        self._orphans: list[PendingItem] = []
        self._engine = engine
        engine.heir = self._orphans.extend
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Replaces nothing any more; the engine stays as it is."""
        self._engine.heir = None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._fail_orphans()

    async def _keep(self) -> None:
        while True:
            started = time.monotonic()
            await self._engine.ended.wait()
            if time.monotonic() - started > self._stable_seconds:
                self._backoff.reset()
            self._note_end(self._engine)
            self._engine = await self._replacement()
            self._model.engine_replaced(self._engine)

    async def _replacement(self) -> EngineProcess:
        while True:
            engine = await self._started()
            engine.heir = _leave_to_the_trial
            try:
                culprit = await self._try_suspects(engine)
            except BaseException:
                await engine.stop()
                raise
            if not engine.ended.is_set():
                engine.heir = self._orphans.extend
                for item in self._take_orphans():
                    engine.adopt(item)
                return engine
            self._note_end(engine)
            if culprit is None:
                self._fail_orphans()
            else:
                self._refuse(engine, culprit)
                self._backoff.forgive()

    async def _started(self) -> EngineProcess:
        while True:
            await asyncio.sleep(self._backoff.next())
            try:
                return await self._model.start_engine()
            except MultigrainError as error:
                # They have waited for one start; it may be long until the next succeeds.
                self._fail_orphans()
                self._model.engine_delayed(f"cannot be replaced yet: {error.message}")
                _LOG.error("%s cannot be loaded again: %s", self._label, error)

    async def _try_suspects(self, engine: EngineProcess) -> PendingItem | None:
        """Gives the engine one image at a time; returns the one that it dies of."""
        suspects = [item for item in self._orphans if item.suspect]
        for item in suspects:
            if item.future.done():
                continue
            engine.adopt(item)
            await _answered_or_ended(item, engine)
            if engine.ended.is_set():
                return None if item.future.done() else item
        if suspects:
            _LOG.info(
                "none of the %d images in the engine's hands ends it: %s",
                len(suspects),
                self._label,
            )
        return None

    def _refuse(self, engine: EngineProcess, item: PendingItem) -> None:
        digest = self._refused.add(item.image)
        _LOG.error(
            "engine of %s ended twice of one image, which is refused from now on: SHA-256 %s",
            self._label,
            digest,
        )
        engine.refuse(item, self._refused.error(digest))

    def _note_end(self, engine: EngineProcess) -> None:
        self._model.engine_ended(engine.end_reason)
        _LOG.error("engine of %s ended: %s", self._label, engine.end_reason)

    def _take_orphans(self) -> Sequence[PendingItem]:
        taken = [item for item in self._orphans if not item.future.done()]
        self._orphans.clear()
        return taken

    def _fail_orphans(self) -> None:
        for item in self._take_orphans():
            item.fail(
                MultigrainError(
                    ErrorKind.UNAVAILABLE,
                    f"the engine of {self._label} ended ({self._engine.end_reason or 'closing'}) "
                    "and could not be replaced at once: try again",
                    retry_after=1.0,
                )
            )


def _leave_to_the_trial(_items: Sequence[PendingItem]) -> None:
    """What an engine on trial had is still among the keeper's orphans."""


async def _answered_or_ended(item: PendingItem, engine: EngineProcess) -> None:
    ended = asyncio.ensure_future(engine.ended.wait())
    awaited: set[asyncio.Future[Any]] = {item.future, ended}
    try:
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
