"""Images in the hands of an engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from multigrain.engine.wire import Result


@dataclass(frozen=True)
class EngineResult:
    """One image's result; ``payload`` is laid out as :class:`multigrain.engine.wire.Result`
    says."""

    result: Result
    payload: bytes


@dataclass(frozen=True, eq=False)
class PendingItem:
    """An image in work."""

    id: int
    future: asyncio.Future[EngineResult]
