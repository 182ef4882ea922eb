"""Messages put together from encoded parts."""

from __future__ import annotations

from multigrain.v1.job_pb2 import JobEvent, JobEventBatch, LogEvent
from multigrain_server.convert.events import joined, unless_encoded


def test_joined_messages_are_what_protobuf_would_write() -> None:
    events = [
        JobEvent(seq=seq, log=LogEvent(message="x" * length))
        for seq, length in enumerate((0, 1, 119, 120, 127, 128, 20_000, 3_000_000))
    ]
    whole = joined(1, [event.SerializeToString() for event in events])
    assert whole == JobEventBatch(events=events).SerializeToString()
    assert joined(1, []) == b""


def test_what_is_encoded_already_is_sent_as_it_is() -> None:
    encode = unless_encoded(JobEvent.SerializeToString)
    assert encode is not None
    event = JobEvent(seq=7)
    assert unless_encoded(None) is None
    assert encode(event) == encode(event.SerializeToString()) == event.SerializeToString()
