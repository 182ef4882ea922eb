"""The order in which images are decoded and computed, without threads or a clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from unittest import mock

import numpy as np
import pytest

from multigrain.engine.batching import (
    BatchLatencyEstimator,
    DropReason,
    Item,
    Limits,
    Stage,
    short_batch,
)
from multigrain.engine.lanes import Lane
from multigrain.engine.protocol import Submit
from tests.engine.held import HeldBatcher, HeldSchedule

SIDE = 4
HOUR_NS = 3_600_000_000_000


class Queue:
    """A batcher whose decoding and computing threads are the test."""

    def __init__(self, *, best: int = 4, seconds: float = 0.0, **limits: int) -> None:
        self.dropped: list[tuple[int, DropReason]] = []
        self.latency = BatchLatencyEstimator(best)
        if seconds:
            self.latency.record(1, seconds)
        fields = {"max_batch": 8, "decode_ahead": 1000, **limits}
        latencies = {SIDE: self.latency, 2 * SIDE: BatchLatencyEstimator(best)}
        self.batcher = HeldBatcher(
            HeldSchedule(Limits(**fields), latencies),
            lambda item, why: self.dropped.append((item.request.id, why)),
        )

    def submit(
        self,
        *ids: int,
        caller: int = 0,
        client: int = 0,
        deadline_ns: int = 0,
        resolution: int = SIDE,
    ) -> None:
        for number in ids:
            request = Submit(
                id=number,
                caller=caller or number,
                client=client,
                deadline_ns=deadline_ns,
                resolution=resolution,
            )
            self.batcher.submit(Item(request, b"x"))

    def decode(self, count: int = 1) -> list[int]:
        """Decodes the next images; their ids."""
        out = []
        for _ in range(count):
            item = self.batcher.next_to_decode()
            assert item is not None
            item.pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
            self.batcher.decoded(item)
            out.append(item.request.id)
        return out

    def take(self) -> list[Item]:
        batch = self.batcher.next_batch()
        assert batch is not None
        return batch

    def compute(self) -> list[int]:
        """Computes the next batch; its ids."""
        batch = self.take()
        self.batcher.done(batch, 0.001)
        return ids(batch)


def ids(items: Sequence[Item]) -> list[int]:
    return [item.request.id for item in items]


def test_a_large_request_does_not_delay_a_small_one() -> None:
    queue = Queue()
    queue.submit(*range(100, 160), caller=1)
    assert queue.decode() == [100]
    queue.submit(7, caller=2)
    queue.submit(8, caller=3)
    assert queue.decode(4) == [7, 8, 101, 102]
    assert queue.compute() == [100, 7, 8, 101]


@pytest.mark.parametrize(
    ("full_seconds", "size"), [(0.04, 1), (0.08, 1), (0.02, 2), (0.015, 3), (0.0139, 4), (0.01, 4)]
)
def test_a_short_batch_takes_little_longer_than_one_image(full_seconds: float, size: int) -> None:
    assert short_batch(0.01, 4, full_seconds) == size


def test_batches_are_short_although_the_first_measurements_were_disturbed() -> None:
    runs, now = [], [0.0]

    class Disturbed:
        """Takes 0.1 s for an image, and three times as long at first."""

        best_batch = 16

        def run_pixels(self, images: Sequence[object]) -> None:
            runs.append(len(images))
            now[0] += (0.3 if len(runs) <= 3 else 0.1) * len(images)

    with mock.patch("time.perf_counter", side_effect=lambda: now[0]):
        latency = BatchLatencyEstimator.measure(Disturbed(), SIDE)
    assert latency.short_batch == 1
    assert latency.seconds(16) > 1.5


def test_each_batch_tells_the_pace_of_batches_of_all_sizes() -> None:
    latency = BatchLatencyEstimator(8)
    for size in (1, 8):
        for _ in range(2):
            latency.record(size, 0.01 * size)
    assert latency.seconds(4) == pytest.approx(0.04)
    latency.record(8, 0.24)
    assert latency.seconds(1) == pytest.approx(0.01)  # one slow batch is an exception
    latency.record(8, 0.24)
    assert [latency.seconds(size) for size in (1, 4, 8)] == pytest.approx(
        [0.03, 0.12, 0.24], rel=0.25
    )


@pytest.mark.parametrize("fixed", [0.0, 0.5])
def test_a_batch_is_smaller_if_its_first_image_would_be_late(fixed: float) -> None:
    """Unless small batches are much slower than large ones."""
    queue = Queue(best=8)
    for number in (1, 8):
        queue.latency.record(number, 60.0 * (fixed + (1 - fixed) * number / 8))
    now = time.monotonic_ns()
    with mock.patch.object(time, "monotonic_ns", return_value=now):
        queue.submit(1, deadline_ns=now + 40_000_000_000)
        queue.submit(*range(2, 12))
        queue.decode(11)
        batch = ids(queue.take())
    assert len(batch) == 5
    assert (1 in batch) == (fixed == 0.0)


def test_batches_are_short_while_several_clients_send_images() -> None:
    queue = Queue()
    queue.latency.short_batch = 2
    queue.submit(*range(100, 120), client=1)
    queue.decode(20)
    assert len(queue.take()) == 4
    queue.submit(7, client=2)
    queue.decode()
    batch = ids(queue.take())
    assert 7 in batch
    assert len(batch) == 3  # at most two of each client
    # The next image of the other client would wait for this batch.
    assert len(queue.take()) == 2
    with mock.patch("time.monotonic_ns", return_value=time.monotonic_ns() + HOUR_NS):
        assert len(queue.take()) == 4


def test_clients_are_served_in_turns_where_larger_batches_gain_nothing() -> None:
    queue = Queue()
    for size in (1, 4):
        queue.latency.record(size, 0.01 * size)
    queue.latency.short_batch = 1
    queue.submit(*range(100, 120), client=1)
    queue.decode(20)
    assert len(queue.take()) == 4
    queue.submit(7, client=2)
    queue.decode()
    # At once, although images of the other client came earlier.
    assert ids(queue.take()) == [7]
    assert len(queue.take()) == 1
    with mock.patch("time.monotonic_ns", return_value=time.monotonic_ns() + HOUR_NS):
        assert len(queue.take()) == 4


def test_batches_stay_short_beside_a_client_that_sent_all_its_images_long_ago() -> None:
    queue = Queue()
    queue.latency.short_batch = 1
    queue.submit(*range(100, 120), client=1)
    queue.submit(7, client=2)
    queue.decode(21)
    assert len(queue.take()) == 2
    later = time.monotonic_ns() + HOUR_NS
    with mock.patch("time.monotonic_ns", return_value=later):
        # The other client's next image arrives beside the rest of these, and so will another.
        queue.submit(8, client=2)
        queue.decode()
        assert len(queue.take()) == 2
        assert len(queue.take()) == 1


def test_callers_are_served_in_rotation() -> None:
    queue = Queue(best=6)
    queue.submit(10, 11, 12, 13, caller=1)
    queue.submit(20, 21, caller=2)
    queue.submit(30, 31, 32, caller=3)
    assert queue.decode(9) == [10, 20, 30, 11, 21, 31, 12, 32, 13]
    assert queue.compute() == [10, 20, 30, 11, 21, 31]
    assert queue.compute() == [12, 32, 13]


def test_a_stream_of_small_requests_does_not_starve_a_large_one() -> None:
    queue = Queue(best=1)
    queue.submit(100, 101, 102, caller=1)
    order = []
    for number in range(1, 9):
        queue.submit(number, caller=number + 1)
        queue.decode()
        order += queue.compute()
    assert order.index(100) < order.index(101) < order.index(102) <= 6


def test_past_requests_of_a_caller_do_not_count_against_it() -> None:
    queue = Queue(best=1)
    for number in range(100, 150):
        queue.submit(number, caller=1)
        queue.decode()
        queue.compute()
    queue.submit(1, caller=2)
    queue.submit(150, caller=1)
    queue.submit(2, caller=2)
    assert queue.decode(3) == [1, 150, 2]


def test_within_a_round_the_earliest_deadline_goes_first() -> None:
    queue = Queue()
    now = time.monotonic_ns()
    queue.submit(1)
    queue.submit(2, deadline_ns=now + 3 * HOUR_NS)
    queue.submit(3, deadline_ns=now + HOUR_NS)
    queue.submit(4, deadline_ns=now + 2 * HOUR_NS)
    assert queue.decode(4) == [3, 4, 2, 1]
    assert queue.compute() == [3, 4, 2, 1]


def test_an_image_that_cannot_meet_its_deadline_is_neither_decoded_nor_computed() -> None:
    queue = Queue(seconds=60.0)
    now = time.monotonic_ns()
    queue.submit(1, deadline_ns=now + 30_000_000_000)
    queue.submit(2, deadline_ns=now + HOUR_NS)
    assert queue.decode() == [2]
    assert queue.dropped == [(1, DropReason.DEADLINE)]
    assert queue.compute() == [2]


@pytest.mark.parametrize("decoded", [False, True])
def test_the_estimate_that_found_an_image_late_gives_the_reason(decoded: bool) -> None:
    """Not the one that the drop itself has lowered, by which the image would not be late."""
    queue = Queue(seconds=0.0 if decoded else 600.0)
    # After one drop, the estimate is 588 seconds.
    queue.submit(1, deadline_ns=time.monotonic_ns() + 595_000_000_000)
    queue.submit(2)
    if decoded:
        queue.decode(2)
        queue.latency.record(1, 600.0)
        assert queue.compute() == [2]
    else:
        assert queue.decode() == [2]
    assert queue.dropped == [(1, DropReason.DEADLINE)]


def test_images_ahead_in_the_queue_count_against_the_deadline() -> None:
    queue = Queue(best=1, seconds=60.0)
    now = time.monotonic_ns()
    queue.submit(1, 2, 3, caller=1)
    queue.decode(3)
    # Three minutes of work are ahead of it, and it takes one minute itself.
    queue.submit(4, caller=1, deadline_ns=now + 210_000_000_000)
    queue.submit(5, caller=1, deadline_ns=now + 270_000_000_000)
    assert queue.decode() == [5]
    assert queue.dropped == [(4, DropReason.OVERLOADED)]


def test_time_is_reserved_for_the_answer_to_reach_the_caller() -> None:
    second = 1_000_000_000
    long = Item(Submit(id=1, deadline_ns=10 * second), b"", received_ns=0)
    assert long.is_late(10 * second - 99_000_000)
    assert not long.is_late(10 * second - 101_000_000)
    # A short deadline reserves a twentieth of itself.
    short = Item(Submit(id=2, deadline_ns=second), b"", received_ns=0)
    assert short.is_late(second - second // 20 + 1)
    assert not short.is_late(second - second // 20)
    assert not Item(Submit(id=3), b"", received_ns=0).is_late(100 * second)


def test_an_image_whose_answer_would_come_at_the_last_moment_is_dropped() -> None:
    queue = Queue(seconds=60.0)
    now = time.monotonic_ns()
    # Computed 50 ms before its deadline, which is too late, and 150 ms, which is not.
    with mock.patch.object(time, "monotonic_ns", return_value=now):
        queue.submit(1, deadline_ns=now + 60_050_000_000)
        queue.submit(2, deadline_ns=now + 60_150_000_000)
        assert queue.decode() == [2]
    assert [number for number, _ in queue.dropped] == [1]


def test_the_confidence_in_a_latency_decays_while_images_are_dropped() -> None:
    queue = Queue(seconds=60.0)
    number = 0
    for number in range(1, 200):
        queue.submit(number, deadline_ns=time.monotonic_ns() + 30_000_000_000)
        queue.submit(1000 + number)
        first = queue.decode()[0]
        if first == number:
            break
        queue.batcher.cancel(first)
    assert 30 < number < 40  # 0.98 ** 35 = 0.49


def test_a_decoded_image_that_becomes_late_is_not_computed() -> None:
    queue = Queue()
    queue.submit(1, deadline_ns=time.monotonic_ns() + HOUR_NS)
    queue.submit(2)
    queue.decode(2)
    # Slower than estimated: an hour is no longer enough.
    queue.latency.record(1, 7200.0)
    assert queue.compute() == [2]
    assert queue.dropped == [(1, DropReason.DEADLINE)]


@pytest.mark.parametrize("decoded", [False, True])
def test_a_canceled_image_is_dropped_before_and_after_decoding(decoded: bool) -> None:
    queue = Queue()
    queue.submit(1)
    queue.submit(2)
    if decoded:
        queue.decode(2)
    queue.batcher.cancel(1)
    assert queue.dropped == [(1, DropReason.CANCELLED)]
    if not decoded:
        assert queue.decode() == [2]
    assert queue.compute() == [2]


def test_an_image_canceled_during_its_batch_is_reported_afterwards() -> None:
    queue = Queue()
    queue.submit(1)
    queue.submit(2)
    queue.decode(2)
    batch = queue.take()
    queue.batcher.cancel(2)
    assert queue.dropped == []
    assert ids(queue.batcher.done(batch, 0.001)) == [2]


def test_decoding_ahead_is_limited() -> None:
    queue = Queue(decode_ahead=3)
    queue.submit(*range(1, 10))
    assert queue.decode(3) == [1, 2, 3]
    late = threading.Thread(target=queue.decode, daemon=True)
    late.start()
    late.join(0.05)
    assert late.is_alive()
    queue.compute()
    late.join(60)
    assert not late.is_alive()


def test_decoded_bytes_are_limited_but_one_image_is_always_allowed() -> None:
    queue = Queue(decoded_bytes=2 * 3 * SIDE**2)
    queue.submit(*range(1, 5))
    assert queue.decode(2) == [1, 2]
    late = threading.Thread(target=queue.decode, daemon=True)
    late.start()
    late.join(0.05)
    assert late.is_alive()
    queue.batcher.cancel(1)
    late.join(60)
    assert not late.is_alive()
    tight = Queue(decoded_bytes=1)
    tight.submit(1, 2)
    assert tight.decode() == [1]


@pytest.mark.parametrize("canceled", [False, True], ids=["damaged", "canceled"])
def test_an_image_that_ends_while_it_is_decoded_leaves_its_room_to_others(canceled: bool) -> None:
    queue = Queue(decoded_bytes=2 * 3 * SIDE**2)
    for number in range(1, 4):
        queue.submit(number)
        item = queue.batcher.next_to_decode()
        assert item is not None
        if canceled:
            queue.batcher.cancel(number)
            queue.batcher.decoded(item)
        else:
            queue.batcher.decode_failed(item)
    queue.submit(4, 5)
    both = threading.Thread(target=queue.decode, args=(2,), daemon=True)
    both.start()
    both.join(60)
    assert not both.is_alive()
    assert queue.compute() == [4, 5]


def test_a_batch_has_one_resolution_and_the_other_is_next() -> None:
    queue = Queue()
    queue.submit(1)
    queue.submit(2, resolution=2 * SIDE)
    queue.submit(3)
    queue.decode(3)
    assert [queue.compute(), queue.compute()] == [[1, 3], [2]]


def test_an_idle_computing_thread_waits_for_decoded_images() -> None:
    queue = Queue()
    queue.submit(5)
    batches: list[list[int]] = []
    idle = threading.Thread(target=lambda: batches.append(queue.compute()))
    idle.start()
    idle.join(0.05)
    assert idle.is_alive()
    item = queue.batcher.next_to_decode()
    assert item is not None
    assert item.stage is Stage.DECODING
    item.pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    queue.batcher.decoded(item)
    idle.join(60)
    assert batches == [[5]]


def test_held_images_are_computed_together_up_to_the_largest_batch() -> None:
    queue = Queue(best=1, decode_ahead=2)
    queue.batcher.hold(11)
    queue.submit(*range(1, 12))
    queue.decode(11)
    assert [len(queue.compute()), len(queue.compute())] == [8, 3]
    queue.submit(20, 21)
    queue.decode(2)
    assert [queue.compute(), queue.compute()] == [[20], [21]]


def test_close_ends_all_waiting_threads() -> None:
    queue = Queue()
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(queue.batcher.next_to_decode())),
        threading.Thread(target=lambda: found.append(queue.batcher.next_to_decode(Lane.SLOW))),
        threading.Thread(target=lambda: found.append(queue.batcher.next_batch())),
    ]
    for thread in threads:
        thread.start()
    queue.batcher.close()
    for thread in threads:
        thread.join(60)
    assert found == [None, None, None]
