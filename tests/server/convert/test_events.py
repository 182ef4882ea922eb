"""Event log lines become messages of the contract without losing a field."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from multigrain.events.log import Event
from multigrain.events.records import (
    RECORD_TYPES,
    ArtifactRecord,
    CheckpointRecord,
    EvaluationRecord,
    JobError,
    JobState,
    LogRecord,
    LossRecord,
    ProgressRecord,
    Record,
    StateRecord,
)
from multigrain.v1 import common_pb2, job_pb2
from multigrain.v1.job_pb2 import JobEvent, JobEventBatch, LogEvent
from multigrain_server.convert.events import (
    KIND_OF_ENUM,
    encode_batch,
    encode_events,
    event_message,
    message_from_fields,
    timestamp,
)
from multigrain_server.jobs.event_feed import EventLine, parse_line

LOSS = LossRecord(
    step=7,
    total_steps=9,
    epoch=2,
    total_epochs=3,
    loss=0.5,
    classification_loss=0.25,
    instance_loss=0.125,
    learning_rate=0.1,
    damping=0.03,
    images_per_second=120.5,
    data_wait=0.25,
    refreshed_layers=3,
    curvature_layers=54,
    eta_seconds=12.0,
    skipped=True,
    beta=1.2,
    gem_p=3.0,
    step_seconds=0.75,
    kept_layers=40,
    stopped_layers=11,
    skipped_because="the factor A of trunk.conv1 is not finite",
    skipped_total=6,
    loss_scale=1024.0,
    compiled=True,
)


def _message(record: Record) -> job_pb2.JobEvent:
    event = Event(5, "2026-01-31T12:00:00.123456Z", "job-1", 2, record)
    line = parse_line(event.encode().rstrip(b"\n"), "job-1")
    assert line is not None
    assert line.kind == record.key
    message = event_message(line)
    assert (message.seq, message.job_id, message.attempt) == (5, "job-1", 2)
    assert message.time.ToJsonString() == "2026-01-31T12:00:00.123456Z"
    return message


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_a_record_and_its_message_have_the_same_fields(kind: str) -> None:
    message = JobEvent.DESCRIPTOR.fields_by_name[kind].message_type
    assert message is not None
    derived = {"artifact": {"model"}}.get(kind, set())  # model_name@model_version
    assert set(message.fields_by_name) - derived == {f.name for f in fields(RECORD_TYPES[kind])}


def test_an_error_has_the_same_fields_as_its_message() -> None:
    names = set(common_pb2.Error.DESCRIPTOR.fields_by_name)
    assert names == {field.name for field in fields(JobError)}


def test_every_event_kind_of_the_contract_is_a_record_kind() -> None:
    assert set(KIND_OF_ENUM.values()) == set(RECORD_TYPES)
    assert KIND_OF_ENUM[job_pb2.EVENT_KIND_CHECKPOINT] == "checkpoint"


@pytest.mark.parametrize(
    "record",
    [
        LOSS,
        CheckpointRecord(7, 2, "step-7", 1234, best=True),
        EvaluationRecord({"top1": 0.5, "loss": 1.5}, 7, 2, 360, 1, 2.5, 32),
        ProgressRecord(120, 1491, 61.5),
    ],
)
def test_plain_records_keep_every_value(record: Record) -> None:
    message = _message(record)
    assert message.WhichOneof("event") == record.key
    inner = getattr(message, record.key)
    for name, value in asdict(record).items():
        found = getattr(inner, name)
        assert (dict(found) if isinstance(value, dict) else found) == value


def test_fields_of_a_newer_version_are_left_out() -> None:
    newer: dict[str, Any] = {**asdict(LOSS), "novelty": 3, "loss": "NaN"}
    message = message_from_fields(job_pb2.LossEvent, newer)
    assert math.isnan(message.loss)
    assert (message.step, message.skipped_because) == (LOSS.step, LOSS.skipped_because)


def test_fields_that_are_none_are_left_out() -> None:
    fields = {"state": "FAILED", "error": None, "exit_code": None}
    message = message_from_fields(job_pb2.StateEvent, fields)
    assert message.state == job_pb2.JOB_STATE_FAILED
    assert not message.HasField("error")
    assert not message.HasField("exit_code")


def test_a_state_keeps_its_error() -> None:
    error = JobError("WORKER_DIED", "rank 1 died", rank=1, signal=9, log_tail="bye")
    state = _message(StateRecord(JobState.FAILED, "why", error, exit_code=137)).state
    assert (state.state, state.message) == (job_pb2.JOB_STATE_FAILED, "why")
    assert state.exit_code == 137
    assert state.error.kind == common_pb2.ERROR_KIND_WORKER_DIED
    assert (state.error.rank, state.error.signal, state.error.log_tail) == (1, 9, "bye")
    assert not state.error.HasField("exit_code")
    assert not _message(StateRecord(JobState.RUNNING)).state.HasField("exit_code")


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_is_converted(state: JobState) -> None:
    message = _message(StateRecord(state))
    assert job_pb2.JobState.Name(message.state.state) == f"JOB_STATE_{state}"


def test_a_non_finite_metric_is_sent() -> None:
    evaluation = _message(EvaluationRecord({"top1": math.nan, "loss": 2.0})).evaluation
    assert math.isnan(evaluation.metrics["top1"])
    assert evaluation.metrics["loss"] == 2.0


def test_an_error_kind_of_a_newer_version_is_internal() -> None:
    state = _message(StateRecord(JobState.FAILED, "", JobError("NOVELTY", "m"))).state
    assert state.error.kind == common_pb2.ERROR_KIND_INTERNAL


def test_a_log_keeps_its_level_rank_and_fields() -> None:
    log = _message(LogRecord("WARNING", "m", -1, {"path": "a/b"})).log
    assert (log.level, log.message, log.rank) == (job_pb2.LogEvent.LEVEL_WARNING, "m", -1)
    assert dict(log.fields) == {"path": "a/b"}


def test_an_artifact_names_its_model() -> None:
    artifact = _message(ArtifactRecord("digits", 3, ("a", "b"), 12)).artifact
    assert (artifact.model, list(artifact.files), artifact.bytes) == ("digits@3", ["a", "b"], 12)


def test_non_finite_numbers_are_sent() -> None:
    message = _message(replace(LOSS, loss=math.nan, damping=math.inf)).loss
    assert math.isnan(message.loss)
    assert message.damping == math.inf


def test_times_keep_their_microseconds() -> None:
    stamp = timestamp("2026-01-31T12:00:00.000001Z")
    assert stamp is not None
    assert stamp.nanos == 1000
    assert stamp == timestamp("2026-01-31T12:00:00.000001+00:00")
    assert timestamp("2026-01-31T12:00:00.5+00:00") == timestamp("2026-01-31T12:00:00.500000Z")
    assert timestamp("2026-01-31T12:00:00.5") == timestamp("2026-01-31T12:00:00.500000Z")
    assert timestamp("") is None


def test_an_event_is_encoded_once_and_a_damaged_line_is_left_out() -> None:
    line = parse_line(
        Event(1, "2026-01-31T12:00:00.123456Z", "job-1", 1, LOSS).encode().rstrip(), "job-1"
    )
    assert line is not None
    damaged = EventLine(2, "loss", b'{"seq":2,', job_id="job-1")
    with capture_logs() as logs:
        (first,), (second,) = encode_events([line, damaged]), encode_events([line, damaged])
    (logged,) = logs
    assert (logged["event"], logged["job_id"], logged["seq"]) == ("event unreadable", "job-1", 2)
    assert first is second
    assert JobEvent.FromString(first).loss.step == LOSS.step


def test_a_batch_of_encoded_events_is_what_protobuf_would_write() -> None:
    events = [
        JobEvent(seq=seq, log=LogEvent(message="x" * length))
        for seq, length in enumerate((0, 1, 119, 120, 127, 128, 20_000, 3_000_000))
    ]
    batch = encode_batch([event.SerializeToString() for event in events])
    assert batch == JobEventBatch(events=events).SerializeToString()
    assert encode_batch([]) == b""
