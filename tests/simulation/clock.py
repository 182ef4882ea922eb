"""Virtual time: an event loop that never waits, and the clocks that the code under test reads."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")

_START_NS = 1_000_000_000_000


class VirtualClock:
    """Nanoseconds since a moment; it advances only when an event loop has nothing to do."""

    def __init__(self) -> None:
        self.ns = _START_NS

    def monotonic_ns(self) -> int:
        return self.ns

    def seconds(self) -> float:
        return self.ns / 1e9

    @property
    def elapsed(self) -> float:
        """Seconds since the simulation began."""
        return (self.ns - _START_NS) / 1e9


class _Selector(selectors.BaseSelector):
    """Watches nothing. Instead of waiting it sets the clock forward."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._key = selectors.SelectorKey(-1, -1, 0, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that never happens")
        self._clock.ns += max(0, math.ceil(timeout * 1e9))
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._key

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a virtual clock. Unix sockets are objects with ``connect(protocol)``."""

    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._virtual.seconds()

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Any, path: Any = None, *, sock: Any, **_: Any
    ) -> tuple[Any, Any]:
        protocol = protocol_factory()
        return sock.connect(protocol), protocol


@contextmanager
def _clocks(clock: VirtualClock) -> Iterator[None]:
    with (
        mock.patch.object(time, "monotonic_ns", clock.monotonic_ns),
        mock.patch.object(time, "monotonic", clock.seconds),
    ):
        yield


def run(clock: VirtualClock, main: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, in virtual time."""
    with _clocks(clock), asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
        return runner.run(main)
