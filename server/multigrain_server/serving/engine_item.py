"""Images in the hands of an engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from multigrain.engine.wire import Result, Submit
from multigrain.errors import MultigrainError
from multigrain_server.serving.engine_channel import EngineChannel


@dataclass(frozen=True)
class EngineResult:
    """One image's result; ``payload`` is laid out as :class:`multigrain.engine.wire.Result`
    says."""

    result: Result
    payload: bytes


@dataclass(eq=False)
class PendingItem:
    """An image in work. Another engine takes it over, under an id of its own, if the first dies.

    Attributes:
        request: what was sent last; its id counts within the engine that it was sent to.
        image: the payload, kept for a second attempt. The request has it in memory anyway.
        future: the answer; done as well when nobody waits for one any more.
        channel: to the engine that has it now; None once it is answered.
        suspect: it was being decoded or computed when an engine died.
    """

    request: Submit
    image: bytes
    future: asyncio.Future[EngineResult]
    channel: EngineChannel | None = None
    suspect: bool = False

    @property
    def id(self) -> int:
        return self.request.id

    def answer(self, result: EngineResult) -> None:
        self.channel = None
        # A caller that was cancelled has a future that is done: nobody is waiting.
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: MultigrainError) -> None:
        self.channel = None
        if not self.future.done():
            self.future.set_exception(error)
            # Also when nobody will ever look.
            self.future.exception()
