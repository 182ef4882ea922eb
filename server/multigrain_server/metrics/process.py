"""Series of the daemon's own process: what would grow if something leaked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector


def register_process(registry: CollectorRegistry, calls: Callable[[], int]) -> None:
    """``calls``: gives the number of calls that are being answered."""
    # Prometheus' own names: process_open_fds, process_resident_memory_bytes and so on.
    ProcessCollector(registry=registry)
    Gauge(
        "multigrain_calls_in_flight",
        "Calls that are being answered; health checks and reflection do not count.",
        registry=registry,
    ).set_function(calls)
    Gauge("multigrain_tasks", "Tasks of the daemon's event loop.", registry=registry).set_function(
        _tasks
    )


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # collected outside of the loop, as tests do
        return 0
