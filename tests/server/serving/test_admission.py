"""Admission by the rate of a fake engine."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import pairwise
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from multigrain.engine.protocol import Ready
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import ImageRequest
from multigrain_server.models.metrics import Refusal, ServingMetrics
from multigrain_server.serving.admission import Admission
from multigrain_server.serving.flow import Flow, Work
from multigrain_server.serving.shares import Sender

ONE = Work(1, 1.0)


class Engine:
    """A fake engine that reports a rate."""

    def __init__(self, rate: float = 100.0) -> None:
        self.ready: Ready | None = Ready(
            runtime="",
            reason="",
            resolutions=(),
            embedding_size=1,
            classes=1,
            max_batch=8,
            load_seconds=0,
            # It is believed seven tenths of that until it is measured.
            images_per_second=rate / 0.7,
        )


def images(items: int, size: int = 0, caller: int = 0, deadline_ns: int = 0) -> ImageRequest:
    """A request of ``items`` images that have ``size`` bytes together."""
    contents = [bytes(size)] + [b""] * (items - 1)
    return ImageRequest("", contents, caller=caller, deadline_ns=deadline_ns)


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns


class Gate:
    """Admission whose requests never finish."""

    def __init__(self, rate: float = 100.0, **fields: object) -> None:
        config = ServingConfig(**{"max_images_per_request": 4, "queue_items": 1000, **fields})
        self.registry = CollectorRegistry()
        self.clock = Clock()
        self.chance = 0.0
        metrics = ServingMetrics(self.registry)
        self.admission = Admission(config, metrics, self.clock, lambda: self.chance)
        self.engine = Engine(rate)
        self._callers = 0
        self._inside = ExitStack()

    def enter(self, items: int = 1, *, size: int = 0, seconds: float = 0, caller: int = 0) -> None:
        """Admits a request that never finishes."""
        self._callers += 1
        deadline = self.clock.ns + int(1e9 * seconds) if seconds else 0
        request = images(items, size, caller or self._callers, deadline)
        self._inside.enter_context(self.admission.admit(request, self.engine))

    def leave(self) -> None:
        """Ends all requests."""
        self._inside.close()

    def counted(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"multigrain_{name}")

    def refusals(self) -> dict[str, float]:
        """By reason, those that there were."""
        counts = {
            reason: self.registry.get_sample_value("multigrain_rejected_total", {"reason": reason})
            for reason in get_args(Refusal)
        }
        return {reason: count for reason, count in counts.items() if count}

    def refused(self, items: int = 1, **fields: float) -> MultigrainError:
        before = self.admission.items
        with pytest.raises(MultigrainError) as caught:
            self.enter(items, **fields)
        assert self.admission.items == before
        return caught.value

    def delay(self, items: int = 1, **fields: float) -> float:
        error = self.refused(items, **fields)
        assert error.kind is ErrorKind.OVERLOADED
        assert error.retry_after is not None
        return error.retry_after


def test_room_is_released_however_the_request_ends() -> None:
    gate = Gate()
    inside = []

    def fail() -> None:
        with gate.admission.admit(images(4, 100), gate.engine):
            inside.append(gate.admission.items)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [4]
    assert gate.admission.items == 0


def test_items_and_bytes_may_reach_their_limits_and_each_refusal_counts_once() -> None:
    gate = Gate(queue_items=4, max_image_bytes=1024, queue_bytes=2048)
    with gate.admission.admit(images(4, 2048), gate.engine):
        assert gate.counted("inflight_bytes") == 2048
        assert gate.refused(1, size=0).kind is ErrorKind.OVERLOADED
        assert gate.refusals() == {"queue_full": 1}
    assert (gate.counted("inflight_items"), gate.counted("inflight_bytes")) == (0, 0)
    with gate.admission.admit(images(2, 2048), gate.engine):
        assert gate.refused(1, size=1).kind is ErrorKind.OVERLOADED
        assert gate.refusals() == {"queue_full": 1, "bytes": 1}
    # More than ever fits.
    assert gate.refused(1, size=2049).kind is ErrorKind.INVALID_FIELD
    assert gate.refusals() == {"queue_full": 1, "bytes": 2}
    gate.admission.too_late(images(1, 1), gate.engine)
    gate.admission.drain()
    assert gate.refused(1, size=1).kind is ErrorKind.UNAVAILABLE
    assert gate.refusals() == {"queue_full": 1, "bytes": 2, "late": 1, "draining": 1}


def test_retry_delays_are_at_most_ten_seconds() -> None:
    gate = Gate(rate=0.1, queue_items=4)
    gate.enter(4)
    assert gate.delay(4) == 10.0


def test_no_more_is_admitted_than_can_be_answered_within_the_deadline() -> None:
    gate = Gate(rate=100)
    # 200 images are two seconds' work; a quarter of the time is kept for what is not foreseen.
    for _ in range(150):
        gate.enter(seconds=2)
    assert gate.refused(seconds=2).kind is ErrorKind.OVERLOADED
    assert gate.registry.get_sample_value("multigrain_rejected_total", {"reason": "late"}) == 1


def test_a_later_deadline_is_still_admitted() -> None:
    gate = Gate(rate=100)
    for _ in range(100):
        gate.enter(seconds=2)
    gate.refused(seconds=0.5)
    gate.enter(seconds=4)
    gate.enter()


def test_an_idle_engine_gets_requests_with_any_deadline() -> None:
    Gate(rate=1).enter(seconds=0.01)


def test_a_caller_with_many_images_does_not_block_others() -> None:
    gate = Gate(rate=100)
    for _ in range(100):
        gate.enter(caller=77)
    # Behind one image of the other, by turns: not behind a second's work.
    gate.enter(seconds=0.1)
    gate.refused(4, seconds=0.02)
    gate.refused(seconds=0.5, caller=77)


def test_images_in_flight_with_an_earlier_deadline_count_in_full() -> None:
    gate = Gate(rate=100)
    gate.enter(75, seconds=1)
    # By turns it would be computed second; but the 75 were promised what is left.
    gate.refused(seconds=1.001)
    gate.enter(seconds=0.9)


def test_refused_requests_get_different_retry_delays() -> None:
    gate = Gate(rate=100, queue_items=10)
    for _ in range(10):
        gate.enter()
    delays = [gate.delay() for _ in range(20)]
    assert delays[0] == pytest.approx(0.05)
    assert all(after - before == pytest.approx(0.01) for before, after in pairwise(delays))
    assert gate.delay(4) - delays[-1] == pytest.approx(0.04)
    gate.clock.ns += 1_000_000_000
    assert gate.delay() == pytest.approx(0.05)


def test_retries_are_due_when_half_of_the_queue_is_computed() -> None:
    gate = Gate(rate=100)
    for _ in range(150):
        gate.enter(seconds=2)
    assert gate.delay(seconds=2) == pytest.approx(0.75)


def test_retry_delays_are_bounded() -> None:
    gate = Gate(rate=1, queue_items=4)
    gate.enter(4)
    assert max(gate.delay(4) for _ in range(100)) == pytest.approx(9)


def test_a_full_queue_with_an_unknown_rate_asks_for_a_second() -> None:
    gate = Gate(rate=0, queue_items=4)
    gate.enter(4)
    assert gate.delay() == pytest.approx(1, abs=0.01)


def test_bytes_are_bounded_as_items_are() -> None:
    gate = Gate(queue_bytes=5000, max_image_bytes=2000)
    gate.enter(size=4000)
    assert 0 < gate.delay(size=2000) < 1
    error = gate.refused(size=8000)
    assert error.kind is ErrorKind.INVALID_FIELD


def test_nothing_is_admitted_while_draining() -> None:
    gate = Gate()
    gate.admission.drain()
    assert gate.refused().kind is ErrorKind.UNAVAILABLE


def test_a_refusal_takes_far_less_than_a_millisecond() -> None:
    gate = Gate(rate=100)
    for _ in range(150):
        gate.enter(seconds=2)
    gate.refused(seconds=2)
    # Time of this thread: what else the machine does is no matter.
    fastest = 1.0
    for _ in range(20):
        start = time.thread_time()
        gate.refused(seconds=2)
        fastest = min(fastest, time.thread_time() - start)
    assert fastest < 0.001


def test_an_overload_is_logged_and_not_each_refusal() -> None:
    gate = Gate(queue_items=4)
    gate.enter(4)
    with capture_logs() as lines:
        for _ in range(50):
            gate.refused()
    assert [(line["event"], line["log_level"]) for line in lines] == [("overloaded", "warning")]
    assert lines[0]["reason"] == "4 images are in flight, the limit is 4"


def test_the_rate_is_learned_from_a_busy_engine_and_not_from_an_idle_one() -> None:
    clock = Clock()
    flow = Flow(1000.0, 4, clock)

    def work(rate: float, inside: int, answers: int, *, answered: bool = True) -> None:
        """Keeps ``inside`` images in flight."""
        for number in range(inside):
            flow.enter(Sender("", "", number), ONE, 0)
        for _ in range(answers):
            clock.ns += int(1e9 / rate)
            flow.leave(Sender("", "", 0), ONE, answered=answered)
            flow.enter(Sender("", "", 0), ONE, 0)
        for number in range(inside):
            flow.leave(Sender("", "", number), ONE, answered=False)

    work(50, inside=2, answers=200)
    assert flow.rate == 1000
    work(50, inside=10, answers=300)
    assert flow.rate == pytest.approx(50, rel=0.05)
    # Callers who give up are no sign of speed.
    work(10_000, inside=10, answers=300, answered=False)
    assert flow.rate < 55
    work(200, inside=10, answers=600)
    assert flow.rate == pytest.approx(200, rel=0.05)


def test_the_rate_is_learned_from_few_images_where_deadlines_allow_no_more() -> None:
    clock = Clock()
    flow = Flow(100.0, 16, clock)

    def work(rate: float, answers: int) -> None:
        """Three images are in flight, of which the engine would take 16 at a time."""
        for number in range(3):
            flow.enter(Sender("", "", number), ONE, 0)
        for _ in range(answers):
            clock.ns += int(1e9 / rate)
            flow.limited()
            flow.leave(Sender("", "", 0), ONE, answered=True)
            flow.enter(Sender("", "", 0), ONE, 0)
        for number in range(3):
            flow.leave(Sender("", "", number), ONE, answered=False)

    work(10, answers=40)
    assert flow.rate == pytest.approx(10, rel=0.05)
    work(40, answers=60)
    assert flow.rate == pytest.approx(40, rel=0.05)


def test_an_engine_that_became_slow_is_known_before_it_is_measured() -> None:
    clock = Clock()
    flow = Flow(100.0, 4, clock)
    for number in range(50):
        flow.enter(Sender("", "", number), ONE, 0)
    clock.ns += 1_000_000_000
    # At most the batch that it computes can be done.
    assert flow.rate == pytest.approx(2)
    flow.leave(Sender("", "", 0), ONE, answered=True)
    assert flow.rate == pytest.approx(3)


def test_images_are_counted_as_they_are_answered() -> None:
    gate = Gate(rate=100, max_images_per_request=64)
    with gate.admission.admit(images(64, caller=1), gate.engine) as image_answered:
        gate.refused(20, seconds=1, caller=1)
        for _ in range(63):
            image_answered()
        with gate.admission.admit(
            images(20, caller=1, deadline_ns=gate.clock.ns + 1_000_000_000), gate.engine
        ):
            pass
    assert gate.admission.items == 0


def test_while_refused_requests_wait_others_do_not_get_every_place_that_becomes_free() -> None:
    gate = Gate(rate=100)
    for _ in range(50):
        gate.enter(seconds=1)
    gate.chance = 1.0
    gate.enter(seconds=1)  # nobody has been refused
    delay = gate.delay(seconds=0.5)
    gate.refused(seconds=1)
    gate.chance = 0.0
    gate.enter(seconds=1)
    gate.chance = 1.0
    gate.leave()
    gate.clock.ns += int(1e9 * (delay + 5))
    for _ in range(50):
        gate.enter(seconds=1)  # those that were refused have had their time


def test_a_large_request_is_not_accepted_as_if_none_came_after_it() -> None:
    gate = Gate(rate=100, max_images_per_request=64)
    for _ in range(20):
        gate.enter(seconds=2)
    gate.enter(64, seconds=2)
    gate = Gate(rate=100, max_images_per_request=64)
    for _ in range(20):
        gate.enter(seconds=2)
    gate.refused(seconds=0.1)
    # Each of its images takes turns with one of 20 callers.
    gate.refused(64, seconds=2)
    gate.enter(4, seconds=2)


def test_every_reason_of_a_refusal_has_a_series_from_the_start() -> None:
    registry = CollectorRegistry()
    ServingMetrics(registry)
    for reason in get_args(Refusal):
        assert registry.get_sample_value("multigrain_rejected_total", {"reason": reason}) == 0.0
    assert "late" in get_args(Refusal)
