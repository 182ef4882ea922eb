"""stream_events, stream_losses, wait and latest_curve, with broken connections."""

from __future__ import annotations

import random
import threading
from dataclasses import fields

import grpc
import pytest

from multigrain.v1 import job_pb2
from multigrain_client import (
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    LossPoint,
    NotFound,
    RetryPolicy,
    StreamGap,
    Unavailable,
    latest_curve,
)
from multigrain_client.jobs import loss_point
from tests.client.drivers import take_until_error
from tests.client.events import job_of, loss_event, training_events
from tests.client.fake_server import FakeServer
from tests.client.faults import Fault

BREAKS = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
]


@pytest.mark.parametrize("seed", range(3))
def test_stream_broken_at_random_yields_every_event_once_and_in_order(client, state, seed):
    chance = random.Random(seed)
    state.events["job-1"] = training_events(40)
    state.faults["StreamEvents"].extend(
        Fault(chance.choice(BREAKS), after=chance.randrange(0, 12)) for _ in range(12)
    )

    events = list(client.stream_events("job-1"))

    assert [event.seq for event in events] == list(range(1, 43))
    assert state.calls["StreamEvents"] > 4


def test_after_seq_skips_earlier_events(client, state):
    state.events["job-1"] = training_events(5)
    assert [event.seq for event in client.stream_events("job-1", after_seq=4)] == [5, 6, 7]


def test_kinds_filter_events(client, state):
    state.events["job-1"] = training_events(3)
    state.faults["StreamEvents"].append(Fault(after=1))
    events = list(client.stream_events("job-1", kinds=["state"]))
    assert [event.WhichOneof("event") for event in events] == ["state", "state"]


@pytest.mark.parametrize("kind", ["lose", 0, 99])
def test_unknown_event_kind_is_refused_before_any_call(client, state, kind):
    with pytest.raises(InvalidRequest, match="state, loss, evaluation"):
        list(client.stream_events("job-1", kinds=[kind]))
    assert not state.calls


def test_heartbeats_are_not_yielded(client, state):
    state.events["job-1"] = training_events(3)
    state.heartbeats = True
    events = list(client.stream_events("job-1"))
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]


def test_stream_retries_a_refusal_with_a_delay(client, state):
    state.events["job-1"] = training_events(2)
    state.faults["StreamEvents"].append(
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OVERLOADED", retry_after=0.01)
    )
    assert len(list(client.stream_events("job-1"))) == 4


def test_stream_does_not_retry_an_error_from_the_server(client, state):
    state.faults["StreamEvents"].append(
        Fault(grpc.StatusCode.NOT_FOUND, "there is no job job-9", "NOT_FOUND")
    )
    with pytest.raises(NotFound, match="there is no job job-9"):
        list(client.stream_events("job-9"))
    assert state.calls["StreamEvents"] == 1


def test_stream_raises_when_its_patience_is_exhausted(make_client, server, state):
    patience = RetryPolicy(initial=0.001, maximum=0.01, stream_patience=0.1)
    client = make_client(server.address, retry=patience)
    state.faults["StreamEvents"].extend([Fault()] * 1000)
    with pytest.raises(Unavailable):
        list(client.stream_events("job-1"))
    assert state.calls["StreamEvents"] > 3


def test_missing_event_is_requested_again_then_reported(client, state):
    state.events["job-1"] = training_events(5)
    state.skip_seq = 4
    seen = []
    with pytest.raises(StreamGap, match="event 5 came after event 3"):
        take_until_error(client.stream_events("job-1"), seen)
    assert [event.seq for event in seen] == [1, 2, 3]
    assert state.calls["StreamEvents"] == 3


def test_loss_point_has_every_field_of_the_event(client, state):
    state.events["job-1"] = [loss_event(1, step=3, loss=0.25, attempt=2)]
    (point,) = client.stream_losses("job-1")
    assert (point.attempt, point.step, point.total_steps) == (2, 3, 10)
    assert (point.loss, point.classification_loss, point.instance_loss) == (0.25, 0.5, 0.5)
    assert point.time.isoformat() == "2026-01-31T12:00:00.500000+00:00"
    names = {field.name for field in job_pb2.LossEvent.DESCRIPTOR.fields}
    assert {field.name for field in fields(point)} == names | {"attempt", "seq", "time"}


def test_wait_returns_the_job_when_it_has_succeeded(client, state):
    state.events["job-1"] = training_events(2)
    state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    state.faults["StreamEvents"].append(Fault(after=1))
    assert client.wait("job-1").state == job_pb2.JOB_STATE_SUCCEEDED


def test_wait_raises_with_the_reason_when_the_job_failed(client, state):
    job = state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_FAILED)
    job.error.kind = 41
    job.error.message = "worker 1 was killed by signal 9"
    with pytest.raises(JobFailed, match=r"training job job-1 failed: worker 1 was killed") as info:
        client.wait(job)
    assert info.value.kind == "WORKER_DIED"
    assert info.value.job.job_id == "job-1"


def test_wait_distinguishes_cancelled_from_failed(client, state):
    state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_CANCELLED)
    with pytest.raises(JobCancelled):
        client.wait("job-1")


def test_wait_timeout_names_the_current_state(client, state):
    state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_RUNNING)
    with pytest.raises(DeadlineExceeded, match=r"job job-1 is still RUNNING after 0.3 s"):
        client.wait("job-1", timeout=0.3)


def test_stream_continues_after_a_server_restart(make_client, server, state):
    client = make_client(server.address)
    state.events["job-1"] = training_events(20)
    state.faults["StreamEvents"].append(Fault(after=9))
    stream = client.stream_events("job-1")
    seen = [next(stream).seq for _ in range(9)]
    server.stop()
    restarted: list[FakeServer] = []

    def restart() -> None:
        restarted.append(FakeServer(server.port))
        restarted[0].state.events["job-1"] = training_events(20)

    timer = threading.Timer(0.5, restart)
    timer.start()
    try:
        seen += [event.seq for event in stream]
        assert seen == list(range(1, 23))
        assert restarted[0].state.requests[0].after_seq == 9
    finally:
        timer.join()
        restarted[0].stop()


def points(*keys: tuple[int, int]) -> list[LossPoint]:
    return [
        loss_point(loss_event(seq, step, attempt=attempt))
        for seq, (attempt, step) in enumerate(keys, 1)
    ]


def keys(curve: list[LossPoint]) -> list[tuple[int, int]]:
    return [(point.attempt, point.step) for point in curve]


def test_latest_curve_prefers_the_newest_attempt_from_its_first_step():
    curve = latest_curve(points((1, 1), (1, 2), (1, 3), (1, 4), (2, 3)))
    assert keys(curve) == [(1, 1), (1, 2), (2, 3)]


def test_latest_curve_of_three_attempts_has_no_duplicate_step():
    curve = latest_curve(points((3, 2), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (1, 3)))
    assert keys(curve) == [(1, 1), (3, 2), (3, 3)]
    assert latest_curve([]) == []
