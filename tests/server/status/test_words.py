"""Numbers and times in words."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from multigrain_server.status.words import ago, duration, figure, milliseconds, size


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((0.0, "0.000"), (0.12345, "0.123"), (12.345, "12.35"), (1234.5, "1,234")),
        *((0.0001, "1.00e-04"), (-2.5, "-2.500"), (math.nan, "nan"), (math.inf, "inf")),
    ],
)
def test_figures_have_four_digits(value: float, said: str) -> None:
    assert figure(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (600, "10 min"), (3700, "1 h 1 min")),
        *((90_000, "1 d 1 h"), (1e6, "11 d"), (-1, "unknown"), (math.nan, "unknown")),
    ],
)
def test_durations_have_one_or_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_sizes_and_latencies_have_the_unit_that_fits() -> None:
    assert [size(n) for n in (0, 1023, 1536, 1 << 30)] == ["0 B", "1023 B", "1.5 KiB", "1.0 GiB"]
    assert [milliseconds(s) for s in (0.0004, 0.02, 12)] == ["0.4 ms", "20 ms", "12.0 s"]


def test_times_say_how_long_ago_and_exactly_when() -> None:
    now = datetime(2026, 1, 31, 12, 5, tzinfo=UTC)
    told = ago("2026-01-31T12:00:00Z", now)
    assert ">5 min 0 s ago<" in told
    assert 'title="2026-01-31 12:00:00 UTC"' in told
    assert ago("", now) == ago("yesterday", now) == ""
