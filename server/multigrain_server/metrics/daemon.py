"""Metrics of the daemon's own process: what would grow if something leaked, and its certificate."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector


def register_process(registry: CollectorRegistry, calls: Callable[[], int]) -> None:
    """Registers Prometheus' own process metrics, and counts of calls and tasks.

    Args:
        registry: where to.
        calls: returns the number of calls in flight.
    """
    tasks = _Tasks()
    # process_open_fds, process_resident_memory_bytes and so on.
    ProcessCollector(registry=registry)
    Gauge(
        "multigrain_calls_in_flight",
        "gRPC calls in flight, without health checks and reflection.",
        registry=registry,
    ).set_function(calls)
    Gauge("multigrain_tasks", "Tasks of the daemon's event loop.", registry=registry).set_function(
        tasks.count
    )


def register_certificate(registry: CollectorRegistry, expiry: Callable[[], float] | None) -> None:
    """Registers the expiry of the gRPC certificate.

    Args:
        registry: where to.
        expiry: returns the Unix time at which the certificate in use expires; None = no TLS.
    """
    Gauge(
        "multigrain_certificate_expiry_timestamp_seconds",
        "Unix time at which the certificate of the gRPC address expires; +Inf without TLS.",
        registry=registry,
    ).set_function(expiry or (lambda: math.inf))


def register_tokens(registry: CollectorRegistry, stale_seconds: Callable[[], float]) -> None:
    """Registers for how long the token file could not be read.

    Args:
        registry: where to.
        stale_seconds: returns it; 0 if the tokens in use are those of the file.
    """
    Gauge(
        "multigrain_tokens_stale_seconds",
        "Seconds for which the token file could not be read, while its previous tokens stay in "
        "use; 0 if they are those of the file.",
        registry=registry,
    ).set_function(stale_seconds)


class _Tasks:
    """Counts the tasks of the event loop in which it was made, from any thread."""

    def __init__(self) -> None:
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # in tests
            self._loop = None

    def count(self) -> int:
        try:
            return len(asyncio.all_tasks(self._loop)) if self._loop is not None else 0
        except RuntimeError:  # too many came and went meanwhile
            return 0
