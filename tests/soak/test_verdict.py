"""The verdict of a soak on recorded series: it passes what is steady and catches what leaks."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.soak.verdict import MIB, Outcome, Sample, slope

CODES = {"OK": 100_000, "UNAVAILABLE": 40}


def recorded(
    memory: Callable[[float], float] = lambda share: 0.0,
    descriptors: Callable[[float], float] = lambda share: 0.0,
    tasks: Callable[[float], float] = lambda share: 0.0,
    engines: Callable[[float], float] = lambda share: 0.0,
) -> list[Sample]:
    """Ten minutes, a sample each five seconds, with the noise of a real daemon.

    The functions say what is added, by the share of the run that has passed.
    """
    chance = random.Random(5)
    samples = []
    for number in range(120):
        share = number / 119
        warm = min(1.0, share * 5)  # grows at first, as caches fill
        samples.append(
            Sample(
                seconds=5.0 * number,
                memory=(90 + 30 * warm + chance.uniform(-12, 12)) * MIB + memory(share),
                descriptors=30 + chance.randrange(8) + descriptors(share),
                tasks=60 + chance.randrange(20) + tasks(share),
                engine_memory=(500 + chance.uniform(-30, 30)) * MIB + engines(share),
            )
        )
    return samples


def test_a_steady_daemon_passes() -> None:
    assert Outcome(recorded(), CODES).findings() == []


def test_one_large_request_is_no_leak() -> None:
    spike = recorded(memory=lambda share: 300 * MIB if 0.6 < share < 0.65 else 0)
    assert Outcome(spike, CODES).findings() == []


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("memory", 80 * MIB),
        ("engines", 200 * MIB),
        ("descriptors", 20.0),
        ("tasks", 60.0),
    ],
)
def test_what_grows_all_the_time_is_caught(name: str, leak: float) -> None:
    series = recorded(**{name: lambda share: leak * share})
    (finding,) = Outcome(series, CODES).findings()
    assert name.removesuffix("s") in finding
    assert "grew by" in finding


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        ({"OK": 10_000, "INTERNAL": 1}, "INTERNAL"),
        ({"OK": 10_000, "CANCELLED": 1}, "CANCELLED"),
        ({"OK": 10_000, "UNAVAILABLE": 100}, "of calls were refused"),
        ({}, "no call"),
    ],
)
def test_lost_calls_are_caught(codes: dict[str, int], says: str) -> None:
    (finding,) = Outcome(recorded(), codes).findings()
    assert says in finding


def test_the_slope_is_that_of_most_points() -> None:
    xs = [float(x) for x in range(20)]
    assert slope(xs, [3 * x for x in xs]) == pytest.approx(3)
    assert slope(xs, [3 * x if x != 7 else 1e9 for x in xs]) == pytest.approx(3)


def test_the_report_names_everything() -> None:
    text = Outcome(recorded(), CODES).report()
    for word in ("memory", "descriptors", "tasks", "UNAVAILABLE", "9.9 minutes"):
        assert word in text
