"""The throughput meter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from multigrain.train import loop as module
from multigrain.train.loop import ThroughputMeter

pytestmark = pytest.mark.mindspore


class Clock:
    """A manually advanced clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(
    meter: ThroughputMeter,
    clock: Clock,
    steps: list[tuple[float, float]],
    compiled: tuple[int, ...] = (0, 1),
) -> list[float]:
    """Steps of (seconds waiting for data, seconds computing), of which some compile; returns the
    step times."""

    def batches() -> Iterator[int]:
        for index, (wait, _) in enumerate(steps):
            clock.now += wait
            yield index

    seconds = []
    for index in meter.time_waiting(batches()):
        clock.now += steps[index][1]
        seconds.append(meter.step_done(compiled=index in compiled))
    return seconds


def test_a_step_lasts_from_the_end_of_the_previous_one(clock: Clock) -> None:
    assert run(ThroughputMeter(10), clock, [(1, 3), (0.5, 1.5)]) == pytest.approx([4, 2])


def test_throughput_and_data_wait_exclude_steps_that_compile(clock: Clock) -> None:
    meter = ThroughputMeter(images_per_step=10)
    run(meter, clock, [(0, 50), (0, 30), (1, 1), (0, 2)])
    assert meter.images_per_second == pytest.approx(20 / 4)
    assert meter.data_wait == pytest.approx(1 / 4)
    assert meter.eta_seconds(5) == pytest.approx(10)


def test_only_the_window_counts(clock: Clock) -> None:
    meter = ThroughputMeter(images_per_step=1, window=2)
    run(meter, clock, [(0, 1)] * 5 + [(0, 4), (0, 4)])
    assert meter.images_per_second == pytest.approx(1 / 4)


def test_an_evaluation_counts_in_the_eta_but_in_no_step(
    clock: Clock,
) -> None:
    meter = ThroughputMeter(images_per_step=1)
    run(meter, clock, [(0, 1)] * 4)
    clock.now += 60
    meter.exclude()
    assert run(meter, clock, [(0, 1)], compiled=()) == pytest.approx([1])
    assert meter.images_per_second == pytest.approx(1)
    assert meter.eta_seconds(10) == pytest.approx(10 * (1 + 60 / 5))


def test_there_is_no_estimate_before_a_step_without_compilation(clock: Clock) -> None:
    meter = ThroughputMeter(images_per_step=10)
    run(meter, clock, [(0, 50), (0, 30)])
    assert meter.eta_seconds(5) == -1
    assert meter.images_per_second == pytest.approx(20 / 80)
    assert meter.eta_seconds(0) == 0
    run(meter, clock, [(0, 2)], compiled=())
    assert meter.eta_seconds(5) == pytest.approx(10)


def test_a_later_compilation_does_not_change_the_estimate(clock: Clock) -> None:
    meter = ThroughputMeter(images_per_step=10)
    run(meter, clock, [(0, 50), (0, 2), (0, 40), (0, 2)], compiled=(0, 2))
    assert meter.eta_seconds(5) == pytest.approx(10)


def test_before_the_first_step_there_are_no_rates() -> None:
    meter = ThroughputMeter(10)
    assert meter.images_per_second == 0
    assert meter.eta_seconds(3) == -1
