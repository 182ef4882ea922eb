"""The trace of the call that is being answered, if it has one. Knows no OpenTelemetry."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol

from multigrain.engine.protocol import Result


class CallTrace(Protocol):
    """One call on its way through the daemon."""

    def computed(self, model: str, results: Sequence[Result]) -> None:
        """To be told of images that an engine has just answered."""

    def end(self, code: str, reason: str) -> None:
        """To be told the status that the call ended with, by its gRPC name."""


class Tracing(Protocol):
    """Makes traces."""

    def begin(
        self, method: str, metadata: Sequence[tuple[str, str | bytes]], request_id: str
    ) -> CallTrace | None:
        """Of a call of ``/package.Service/Method`` that has just come in; None = not wanted."""

    def close(self) -> None:
        """Sends what is left, for a moment at most."""


#: None wherever a call is not traced: one look at it is all that tracing costs then.
call_trace: ContextVar[CallTrace | None] = ContextVar("call_trace", default=None)
