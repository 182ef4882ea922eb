"""Numbers, sizes and times on a page."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from multigrain_server.status.formatting import ago, duration, milliseconds, number, printable, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0.000"), (0.12345, "0.123"), (12.345, "12.35"), (1234.5, "1,234")),
        *((0.0001, "1.00e-04"), (-2.5, "-2.500"), (math.nan, "nan"), (math.inf, "inf")),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (600, "10 min"), (3700, "1 h 1 min")),
        *((90_000, "1 d 1 h"), (1e6, "11 d"), (-1, "unknown"), (math.nan, "unknown")),
    ],
)
def test_durations_have_one_or_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_and_latencies_have_a_fitting_unit() -> None:
    assert [size(n) for n in (0, 1023, 1536, 1 << 30)] == ["0 B", "1023 B", "1.5 KiB", "1.0 GiB"]
    assert [milliseconds(s) for s in (0.0004, 0.02, 12)] == ["0.4 ms", "20 ms", "12.0 s"]


def test_times_are_relative_with_the_exact_time_as_tooltip() -> None:
    now = datetime(2026, 1, 31, 12, 5, tzinfo=UTC)
    html = ago("2026-01-31T12:00:00Z", now)
    assert ">5 min 0 s ago<" in html
    assert 'title="2026-01-31 12:00:00 UTC"' in html
    assert ago("", now) == ago("yesterday", now) == ""


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f52c", "日本", "a\nb", "a\tb"]
)
def test_names_in_any_script_are_shown_as_they_are(name: str) -> None:
    assert printable(name) == name


@pytest.mark.parametrize(
    "name", ["\x1b", "\x9b", "\u061c", "\u200f", "\u202e", "\u2029", "\u00ad", "\udce9"]
)
def test_what_reorders_or_hides_text_is_replaced(name: str) -> None:
    assert printable(f"a{name}b") == "a\ufffdb"
