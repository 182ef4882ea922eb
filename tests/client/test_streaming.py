"""Event cursor, replay window and batches."""

from __future__ import annotations

import grpc
import pytest

from multigrain.v1.job_pb2 import EventKind, JobEvent
from multigrain_client import RetryPolicy, Unavailable
from multigrain_client.errors import ImageError, StreamGap
from multigrain_client.images import Batch, EncodedImage, batches_of
from multigrain_client.streaming import EventCursor, ReplayWindow
from tests.client.events import loss_event


def _cursor(*kinds: int, **policy: float) -> EventCursor:
    policy = RetryPolicy(**policy)
    return EventCursor("job-1", after_seq=0, kinds=kinds, follow=True, policy=policy)


def test_stream_backoff_resets_after_an_event():
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    cursor = _cursor(initial=1.0, multiplier=100.0, maximum=100.0)
    assert cursor.on_error(error) <= 1.0
    assert cursor.on_error(error) >= 10.0
    assert cursor.accept(loss_event(1, step=1))
    assert cursor.on_error(error) <= 1.0


def test_consecutive_gaps_are_counted():
    cursor, gap = _cursor(), StreamGap("events are missing")
    for seq in (1, 2):
        assert [cursor.on_gap(gap) > 0 for _ in range(2)] == [True, True]
        assert cursor.accept(loss_event(seq, step=seq))
    for _ in range(2):
        cursor.on_gap(gap)
    with pytest.raises(StreamGap):
        cursor.on_gap(gap)


def test_heartbeat_advances_the_cursor_of_filtered_streams_only():
    ahead = JobEvent(seq=7, heartbeat={})
    every, losses = _cursor(), _cursor(EventKind.EVENT_KIND_LOSS)
    assert not every.accept(ahead)
    assert not losses.accept(ahead)
    assert (every.seq, losses.seq) == (0, 7)


def test_batches_respect_both_limits_and_keep_the_order():
    images = [EncodedImage(index, "", b"x" * size) for index, size in enumerate([3, 3, 3, 9, 1, 1])]
    batches = list(batches_of(images, max_images=3, max_bytes=8))
    assert [[image.index for image in batch.images] for batch in batches] == [[0, 1], [2, 4, 5]]
    assert [error.index for batch in batches for error in batch.errors] == [3]
    assert all(sum(len(image.data) for image in batch.images) <= 8 for batch in batches)
    exactly = [EncodedImage(index, "", b"x" * 4) for index in range(2)]
    assert len(list(batches_of(exactly, max_images=3, max_bytes=8))) == 1


def test_window_limits_batches_in_flight_and_unsent_batches_separately():
    window = ReplayWindow(2)
    sent = Batch((EncodedImage(0, "", b"x"),))
    unsent = Batch((), (ImageError(1, "", "IMAGE_UNREADABLE", ""),))
    for batch in (sent, unsent, unsent):
        window.add(batch)
        assert not window.full
    window.add(sent)
    assert window.full
    assert not window.stuck
    assert window.answered() is sent
    assert not window.full
