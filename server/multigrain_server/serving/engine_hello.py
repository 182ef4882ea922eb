"""The first message of an engine."""

from __future__ import annotations

import asyncio

from multigrain.engine.wire import LoadFailed, Ready
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.serving.foreign_paths import without_folders


class EngineHello:
    """Comes once: that the engine answers, or why it cannot.

    Args:
        label: "name@version", for messages.
        timeout_seconds: that it may take.
    """

    def __init__(self, label: str, timeout_seconds: float) -> None:
        self._label = label
        self._timeout_seconds = timeout_seconds
        self._first: asyncio.Future[Ready | LoadFailed] = asyncio.get_running_loop().create_future()

    def received(self, message: Ready | LoadFailed) -> None:
        if not self._first.done():
            self._first.set_result(message)

    def ended(self, reason: str, last_words: str) -> None:
        """The engine has ended; whatever it had to say is said."""
        if not self._first.done():
            self._first.set_exception(
                MultigrainError(
                    ErrorKind.UNAVAILABLE,
                    f"the engine of {self._label} ended while loading ({reason}); "
                    f"its last words: {without_folders(last_words[:500])}",
                )
            )
            # Also read when nobody waits for it any more (stop during a load).
            self._first.exception()

    async def ready(self) -> Ready:
        """Waits for it.

        Raises:
            MultigrainError: what the engine says, or UNAVAILABLE if it ends or takes too long.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                first = await self._first
        except TimeoutError:
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"{self._label} did not load within {self._timeout_seconds:g} s: raise "
                "serving.load_timeout_seconds, or look at the server's log",
            ) from None
        if isinstance(first, LoadFailed):
            message = without_folders(first.message)
            raise MultigrainError(ErrorKind(first.kind), f"{self._label}: {message}")
        return first
