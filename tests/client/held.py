"""Calls that the fake server holds until they are released."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.client.fake_server import FakeState


class Held:
    """Holds the calls of one method.

    Args:
        state: of the server.
        name: of the method.
        which: selects the requests to hold; default: all.

    Attributes:
        arrived: released once per request, held or not.
        ended: released once per held call that has ended in any way.
    """

    def __init__(
        self, state: FakeState, name: str, which: Callable[[Any], bool] = lambda _: True
    ) -> None:
        self.arrived = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self._released = threading.Event()
        self._name = name
        self._which = which
        self._begin = state.begin
        state.begin = self.begin  # type: ignore[method-assign]

    def release(self) -> None:
        self._released.set()

    def begin(self, name: str, request: Any, context: Any) -> Any:
        if name == self._name:
            held = self._which(request)
            if held:
                context.add_callback(self.ended.release)
            self.arrived.release()
            if held:
                self._released.wait(30)
        return self._begin(name, request, context)
