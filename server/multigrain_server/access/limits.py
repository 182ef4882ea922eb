"""How much one holder of a token may ask for at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.tokens import TokenEntry

# After which a call that ends is likely to have made room.
_RETRY_SECONDS = 0.1


class HolderLimits:
    """The calls of one holder: a bucket that holds a second of calls, and a count.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._filled = clock()
        # As many as the bucket holds, once its size is known.
        self._level = float("inf")
        self._running = 0

    @contextmanager
    def enter(self, entry: TokenEntry) -> Iterator[None]:
        """Holds a place while the call runs, streams included.

        Raises:
            MultigrainError: OVERLOADED with the seconds after which there should be room.
        """
        most = entry.concurrent_calls
        if most is not None and self._running >= most:
            raise MultigrainError(
                ErrorKind.OVERLOADED,
                f"{entry.name} has {self._running} calls in work, its token allows {most} at a "
                "time: end one, or wait",
                retry_after=_RETRY_SECONDS,
            )
        if entry.calls_per_second is not None:
            self._take(entry.name, entry.calls_per_second)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _take(self, name: str, rate: float) -> None:
        now = self._clock()
        self._level = min(max(1.0, rate), self._level + (now - self._filled) * rate)
        self._filled = now
        if self._level < 1:
            delay = (1 - self._level) / rate
            raise MultigrainError(
                ErrorKind.OVERLOADED,
                f"the token of {name} allows {rate:g} calls a second: try again in {delay:.2f} s",
                retry_after=delay,
            )
        self._level -= 1
