"""Metrics of gRPC calls, and the histogram of what every call observes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Observations:
    """One series: how many values lie up to each bound, and their sum.

    Args:
        bounds: ascending; the last one is infinite.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class QuickHistogram(Collector):
    """As ``prometheus_client.Histogram``, for one thread: no lock, and a bisection of the buckets.

    An image is observed in five of them. It may be collected in another thread, in which a value
    may be in the buckets already and not yet in the sum.

    Args:
        name: of the metric.
        text: its description.
        labels: names.
        bounds: of the buckets, ascending, without the infinite one.
        registry: where it is collected.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = (*map(float, bounds), float("inf"))
        self._names = [*map(str, self._bounds[:-1]), "+Inf"]
        self._series: dict[tuple[str, ...], Observations] = {}
        registry.register(self)

    def labels(self, *values: str) -> Observations:
        """The series of some label values; keep it where values are observed often."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Observations(self._bounds)
        return series

    def describe(self) -> Iterable[HistogramMetricFamily]:
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in list(self._series.items()):
            total, counts = series.total, accumulate(series.counts.copy())
            family.add_metric(values, list(zip(self._names, counts, strict=True)), total)
        yield family


@dataclass(frozen=True)
class CallSummary:
    """Calls of one method since the daemon started; ``median`` and ``p99`` in seconds."""

    rpc: str
    answered: int
    failed: int
    median: float
    p99: float


class RequestMetrics:
    """Counts calls and their durations by method and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "multigrain_requests",
            "gRPC calls by method and status.",
            ["rpc", "code"],
            registry=registry,
        )
        self._seconds = QuickHistogram(
            "multigrain_request_seconds",
            "Seconds from the arrival of a call to its end, streams included.",
            ["rpc"],
            BUCKETS,
            registry,
        )
        # A cache: looking up a series by its labels takes longer than counting.
        self._series: dict[tuple[str, str], tuple[Counter, Observations]] = {}

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one call of ``/package.Service/Method``."""
        series = self._series.get((method, code))
        if series is None:
            rpc = method.rpartition(".")[2]
            series = self._requests.labels(rpc, code), self._seconds.labels(rpc)
            self._series[method, code] = series
        series[0].inc()
        series[1].observe(seconds)

    def summary(self) -> list[CallSummary]:
        """Every method that was called, most frequent first."""
        codes: dict[str, dict[str, int]] = {}
        for sample in _samples(self._requests, "_total"):
            codes.setdefault(sample.labels["rpc"], {})[sample.labels["code"]] = int(sample.value)
        buckets: dict[str, list[tuple[float, float]]] = {}
        for sample in _samples(self._seconds, "_bucket"):
            bound = float(sample.labels["le"])
            buckets.setdefault(sample.labels["rpc"], []).append((bound, sample.value))
        found = [
            CallSummary(
                rpc,
                answered=by_code.get("OK", 0),
                failed=sum(by_code.values()) - by_code.get("OK", 0),
                median=_quantile(0.5, buckets[rpc]),
                p99=_quantile(0.99, buckets[rpc]),
            )
            for rpc, by_code in codes.items()
        ]
        return sorted(found, key=lambda call: -(call.answered + call.failed))


def _samples(metric: Counter | QuickHistogram, suffix: str) -> Iterator[Sample]:
    for family in metric.collect():
        yield from (sample for sample in family.samples if sample.name.endswith(suffix))


def _quantile(share: float, buckets: list[tuple[float, float]]) -> float:
    """Linear interpolation within a bucket, as in Prometheus' ``histogram_quantile``."""
    wanted = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, value in buckets:
        if value >= wanted:
            if math.isinf(bound) or value == below:
                return low
            return low + (bound - low) * (wanted - below) / (value - below)
        low, below = bound, value
    return low
