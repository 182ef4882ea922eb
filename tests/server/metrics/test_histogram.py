"""The histogram of the calls' path, against that of prometheus_client."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from multigrain_server.metrics.requests import QuickHistogram

BOUNDS = (0.001, 0.5, 1, 2.5)
VALUES = (0.0, 0.001, 0.0011, 0.5, 0.75, 1.0, 2.5, 2.6, 1e9)


def lines(registry: CollectorRegistry) -> list[str]:
    """What is exposed, without the times at which series were made."""
    return [line for line in openmetrics(registry).decode().splitlines() if "_created" not in line]


def test_it_exposes_what_the_library_would() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    quick = QuickHistogram("seconds", "Text.", ["model"], BOUNDS, ours)
    slow = Histogram("seconds", "Text.", ["model"], buckets=BOUNDS, registry=theirs)
    for number, value in enumerate(VALUES):
        for histogram in (quick, slow):
            histogram.labels(f"model-{number % 2}").observe(value)
    assert lines(ours) == lines(theirs)
    assert list(text_string_to_metric_families(openmetrics(ours).decode()))


def test_a_name_can_be_used_once() -> None:
    registry = CollectorRegistry()
    QuickHistogram("seconds", "Text.", [], BOUNDS, registry)
    with pytest.raises(ValueError, match="seconds"):
        Histogram("seconds", "Text.", registry=registry)
