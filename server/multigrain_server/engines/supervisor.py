"""Replaces a model's engine whenever it ends by itself, and saves the images in flight in it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.asyncio_utils import background_task
from multigrain_server.backoff import Backoff
from multigrain_server.engines.engine import EngineProcess, InFlight

_log = structlog.get_logger(__name__)


class SupervisedModel(ABC):
    """What a supervisor needs of the model whose engine it watches."""

    @abstractmethod
    async def start_engine(self) -> EngineProcess:
        """Raises MultigrainError."""

    @abstractmethod
    def engine_ended(self, reason: str) -> None:
        """The engine has ended; there is none now."""

    @abstractmethod
    def engine_delayed(self, reason: str) -> None:
        """A new engine could not be started yet."""

    @abstractmethod
    def engine_replaced(self, engine: EngineProcess) -> None:
        """A new engine answers."""


class EngineSupervisor:
    """Watches an engine and its successors until :meth:`close`.

    When an engine dies, the images that only waited in it go to the next one. Those that it was
    decoding or computing are suspects: they are tried in the next engine first, one at a time. An
    image that crashes an engine while that engine holds no other image is quarantined, and the
    others are answered. An image is therefore never blamed for a crash that its neighbors, or a
    signal from outside, caused. If memory ran out instead, it is refused for some minutes.

    Args:
        label: "name@version", for logs and messages.
        model: whose engine it is.
        engine: the first one.
        backoff: delays between starts.
        stable_seconds: an engine that lived longer resets the back-off.
    """

    def __init__(
        self,
        label: str,
        model: SupervisedModel,
        engine: EngineProcess,
        backoff: Backoff,
        stable_seconds: float,
    ) -> None:
        self._label = label
        self._model = model
        self._backoff = backoff
        self._stable_seconds = stable_seconds
        self._log = _log.bind(model=label)
        self._orphans: list[InFlight] = []
        self._engine = engine
        engine.on_orphans = self._orphans.extend
        self._task = background_task(self._supervise())

    async def close(self) -> None:
        """Stops watching; the engine stays as it is."""
        self._engine.on_orphans = None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._fail_orphans()

    async def _supervise(self) -> None:
        while True:
            started = time.monotonic()
            await self._engine.ended.wait()
            if time.monotonic() - started > self._stable_seconds:
                self._backoff.reset()
            self._report_end(self._engine)
            self._engine = await self._replacement()
            self._model.engine_replaced(self._engine)

    async def _replacement(self) -> EngineProcess:
        while True:
            engine = await self._started()
            engine.on_orphans = _keep_suspects
            try:
                culprit = await self._try_suspects(engine)
            except BaseException:
                await engine.stop()
                raise
            if not engine.ended.is_set():
                engine.on_orphans = self._orphans.extend
                for item in self._take_orphans():
                    engine.adopt(item)
                return engine
            self._report_end(engine)
            if culprit is None:
                self._fail_orphans()
            else:
                engine.quarantine(culprit)
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
                self._log.error("engine restart failed", reason=error.message)

    async def _try_suspects(self, engine: EngineProcess) -> InFlight | None:
        """Sends the engine one suspect at a time; returns the one that crashes it."""
        suspects = [item for item in self._orphans if item.suspect]
        for item in suspects:
            if item.future.done():
                continue
            engine.adopt(item)
            await _answered_or_ended(item, engine)
            if engine.ended.is_set():
                return None if item.future.done() else item
        if suspects:
            self._log.info("no suspect image crashes the engine", images=len(suspects))
        return None

    def _report_end(self, engine: EngineProcess) -> None:
        self._model.engine_ended(engine.end_reason)
        self._log.error("engine ended", pid=engine.pid, reason=engine.end_reason)

    def _take_orphans(self) -> Sequence[InFlight]:
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


def _keep_suspects(_items: Sequence[InFlight]) -> None:
    """For an engine that tries suspects: what it had is still among the supervisor's orphans."""


async def _answered_or_ended(item: InFlight, engine: EngineProcess) -> None:
    ended = asyncio.ensure_future(engine.ended.wait())
    awaited: set[asyncio.Future[Any]] = {item.future, ended}
    try:
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
