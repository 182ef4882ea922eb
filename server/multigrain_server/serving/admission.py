"""Who may enter: one rule, in items and bytes, for every call that brings images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import ServingMetrics

_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 10.0


class Admission:
    """Counts what is inside. Refuses before anything is decoded or sent anywhere.

    A request is admitted whole or not at all, whatever kind of call it came by.
    """

    def __init__(self, config: ServingConfig, metrics: ServingMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._items = 0
        self._bytes = 0
        self._draining = False
        self._rate = _Rate()

    @property
    def items(self) -> int:
        return self._items

    def drain(self) -> None:
        """Admits nothing from now on."""
        self._draining = True

    @contextmanager
    def admit(self, items: int, size: int) -> Iterator[None]:
        """Holds room for ``items`` images of ``size`` bytes together while the block runs.

        Raises:
            MultigrainError: OVERLOADED with the seconds after which there should be room;
                UNAVAILABLE when draining; INVALID_FIELD for more than the whole queue holds.
        """
        self._check(items, size)
        self._add(items, size)
        try:
            yield
        finally:
            self._add(-items, -size)
            self._rate.finished(items)

    def _check(self, items: int, size: int) -> None:
        if self._draining:
            self._metrics.rejected.labels("draining").inc()
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                "the server is shutting down: send the request to another one",
                retry_after=1.0,
            )
        config = self._config
        if size > config.queue_bytes:
            self._metrics.rejected.labels("bytes").inc()
            raise MultigrainError.field(
                "images",
                f"{size} bytes together, more than the {config.queue_bytes} that the server "
                "holds at a time: send fewer in a request",
            )
        if self._items + items > config.queue_items:
            self._metrics.rejected.labels("queue_full").inc()
            raise self._overloaded(
                f"{self._items} images are in work, the limit is {config.queue_items}", items
            )
        if self._bytes + size > config.queue_bytes:
            self._metrics.rejected.labels("bytes").inc()
            raise self._overloaded(
                f"{self._bytes} bytes of images are in work, the limit is {config.queue_bytes}",
                items,
            )

    def _overloaded(self, why: str, items: int) -> MultigrainError:
        delay = self._rate.seconds_for(items)
        return MultigrainError(
            ErrorKind.OVERLOADED,
            f"the server is full ({why}): try again in {delay:.2f} s",
            retry_after=delay,
        )

    def _add(self, items: int, size: int) -> None:
        self._items += items
        self._bytes += size
        self._metrics.inflight.set(self._items)
        self._metrics.inflight_bytes.set(self._bytes)


class _Rate:
    """Images finished per second, over the last few seconds: tells when room will be free."""

    WINDOW_SECONDS = 2.0

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._count = 0
        self._rate = 0.0

    def finished(self, items: int) -> None:
        self._count += items
        elapsed = time.monotonic() - self._start
        if elapsed >= self.WINDOW_SECONDS:
            self._rate = self._count / elapsed
            self._start += elapsed
            self._count = 0

    def seconds_for(self, items: int) -> float:
        elapsed = max(time.monotonic() - self._start, 1e-3)
        rate = max(self._rate, self._count / max(elapsed, self.WINDOW_SECONDS))
        if rate <= 0:
            return 1.0
        return min(max(items / rate, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
