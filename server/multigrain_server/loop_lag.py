"""How late the event loop is: the time that calls wait for the daemon itself."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Histogram

_INTERVAL_SECONDS = 0.1
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LoopLag:
    """Measures ten times a second how late a timer of the event loop is.

    Args:
        registry: where the histogram is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._histogram = Histogram(
            "multigrain_event_loop_lag_seconds",
            "Seconds by which a timer of the daemon's event loop is late, measured every 0.1 s.",
            buckets=_BUCKETS,
            registry=registry,
        )

    async def watch(self) -> None:
        """Measures until it is canceled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _INTERVAL_SECONDS
            await asyncio.sleep(_INTERVAL_SECONDS)
            self._histogram.observe(max(0.0, loop.time() - due))
