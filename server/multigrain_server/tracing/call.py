"""The trace of the current call, without a dependency on OpenTelemetry."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol

from multigrain.engine.protocol import Result


class CallTrace(Protocol):
    """The trace of one call."""

    def computed(self, model: str, results: Sequence[Result]) -> None:
        """Records images that an engine has just answered."""

    def end(self, code: str, reason: str) -> None:
        """Ends the trace with the name of the gRPC status."""


class Tracing(Protocol):
    """Starts traces."""

    def begin(
        self, method: str, metadata: Sequence[tuple[str, str | bytes]], request_id: str
    ) -> CallTrace | None:
        """Starts the trace of a call of ``/package.Service/Method``; None = not sampled."""

    def close(self) -> None:
        """Exports the remaining spans, with a short timeout."""


#: None if the call is not traced; reading it is all that tracing costs then.
call_trace: ContextVar[CallTrace | None] = ContextVar("call_trace", default=None)
