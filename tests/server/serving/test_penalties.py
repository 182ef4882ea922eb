"""How long a client whose images did harm waits behind the others."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.serving.penalties import Penalties


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def penalties(registry: CollectorRegistry, clock: Clock) -> Penalties:
    return Penalties(ServingMetrics(registry), clock)


def length(penalties: Penalties, clock: Clock) -> float:
    """Seconds until the penalty of "mal" ends; the clock then stands at its end."""
    start = clock.now
    while penalties.active("mal"):
        clock.now += 1
    return clock.now - start


def test_penalties_grow_to_ten_minutes_and_are_forgiven(penalties: Penalties, clock: Clock) -> None:
    lengths = []
    for _ in range(7):
        penalties.penalize("mal")
        lengths.append(length(penalties, clock))
    assert lengths == [30, 60, 120, 240, 480, 600, 600]
    clock.now += 601
    penalties.penalize("mal")
    assert length(penalties, clock) == 30


def test_images_that_were_in_flight_together_count_once(
    penalties: Penalties, clock: Clock, registry: CollectorRegistry
) -> None:
    for _ in range(64):
        penalties.penalize("mal")
    clock.now += 2
    penalties.penalize("mal")
    assert length(penalties, clock) == 28
    assert registry.get_sample_value("multigrain_penalties_total") == 1


def test_other_clients_have_no_penalty(penalties: Penalties) -> None:
    penalties.penalize("mal")
    assert penalties.active("mal")
    assert not penalties.active("ada")


def test_the_table_of_clients_is_bounded_and_forgets_the_oldest(penalties: Penalties) -> None:
    for number in range(5000):
        penalties.penalize(f"client {number}")
    assert not penalties.active("client 0")
    assert penalties.active("client 4999")
    assert len(penalties._clients) == 1024


def test_many_penalties_make_few_log_lines(penalties: Penalties, clock: Clock) -> None:
    with capture_logs() as lines:
        for number in range(200):
            penalties.penalize(f"client {number}")
            clock.now += 0.1
    assert len(lines) == 2
    assert lines[0]["client"] == "client 0"
    assert lines[1]["others_since_last_line"] == 99
