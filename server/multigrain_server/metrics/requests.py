"""Series of gRPC calls."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class RequestMetrics:
    """Counts and durations of calls by method and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "multigrain_requests",
            "Answered gRPC calls.",
            ["rpc", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "multigrain_request_seconds",
            "Time from a call's arrival to its end, streams included.",
            ["rpc"],
            buckets=BUCKETS,
            registry=registry,
        )
        # Looking a series up by its labels takes longer than counting.
        self._series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one call of ``/package.Service/Method``."""
        series = self._series.get((method, code))
        if series is None:
            rpc = method.rpartition(".")[2]
            series = self._requests.labels(rpc, code), self._seconds.labels(rpc)
            self._series[method, code] = series
        series[0].inc()
        series[1].observe(seconds)
