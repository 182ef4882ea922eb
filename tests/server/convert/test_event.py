"""Every stored record becomes the message of the contract with the same figures."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from multigrain.events.log import Event
from multigrain.events.records import (
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
from multigrain_server.convert.events import event_message, timestamp
from multigrain_server.jobs.event_reader import parse_line

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
)


def _message(record: Record) -> job_pb2.JobEvent:
    event = Event(5, "2026-01-31T12:00:00.123456Z", "job-1", 2, record)
    line = parse_line(event.encode().rstrip(b"\n"))
    assert line is not None
    assert line.kind == record.key
    message = event_message(line)
    assert (message.seq, message.job_id, message.attempt) == (5, "job-1", 2)
    assert message.time.ToJsonString() == "2026-01-31T12:00:00.123456Z"
    return message


@pytest.mark.parametrize(
    "record",
    [
        LOSS,
        CheckpointRecord(7, 2, "step-7", 1234, best=True),
        EvaluationRecord({"top1": 0.5, "loss": 1.5}, 7, 2, 360, 1, 2.5, 32),
    ],
)
def test_plain_records_keep_every_field(record: LossRecord) -> None:
    inner = getattr(_message(record), record.key)
    names = inner.DESCRIPTOR.fields_by_name
    assert set(names) == set(asdict(record))
    for name, value in asdict(record).items():
        found = getattr(inner, name)
        assert (dict(found) if isinstance(value, dict) else found) == value


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
def test_every_state_has_its_number(state: JobState) -> None:
    message = _message(StateRecord(state))
    assert job_pb2.JobState.Name(message.state.state) == f"JOB_STATE_{state}"


def test_a_log_keeps_its_level_rank_and_fields() -> None:
    log = _message(LogRecord("WARNING", "m", -1, {"path": "a/b"})).log
    assert (log.level, log.message, log.rank) == (job_pb2.LogEvent.LEVEL_WARNING, "m", -1)
    assert dict(log.fields) == {"path": "a/b"}


def test_an_artifact_has_its_reference() -> None:
    artifact = _message(ArtifactRecord("digits", 3, ("a", "b"), 12)).artifact
    assert (artifact.model, list(artifact.files), artifact.bytes) == ("digits@3", ["a", "b"], 12)


def test_progress_has_its_counts() -> None:
    message = _message(ProgressRecord(120, 1491, 61.5))
    assert message.WhichOneof("event") == "progress"
    progress = message.progress
    assert (progress.done, progress.total, progress.eta_seconds) == (120, 1491, 61.5)


def test_figures_that_are_not_finite_are_sent_as_such() -> None:
    body = {**asdict(LOSS), "loss": math.nan, "damping": math.inf}
    message = _message(LossRecord(**body)).loss
    assert math.isnan(message.loss)
    assert message.damping == math.inf


def test_times_keep_their_microseconds() -> None:
    stamp = timestamp("2026-01-31T12:00:00.000001Z")
    assert stamp is not None
    assert stamp.nanos == 1000
    assert stamp == timestamp("2026-01-31T12:00:00.000001+00:00")
    assert timestamp("2026-01-31T12:00:00.5+00:00") == timestamp("2026-01-31T12:00:00.500000Z")
    assert timestamp("") is None
