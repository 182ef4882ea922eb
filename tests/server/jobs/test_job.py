"""The state of a job, derived from its events."""

from __future__ import annotations

import json
from dataclasses import replace

from multigrain.events.log import Event
from multigrain.events.records import (
    ArtifactRecord,
    CheckpointRecord,
    EvaluationRecord,
    JobError,
    JobState,
    ProgressRecord,
    Record,
    StateRecord,
)
from multigrain_server.jobs.job import JobView
from tests.server.jobs.fake_runner import loss


def _event(seq: int, attempt: int, record: Record) -> Event:
    return Event(seq, f"2026-01-01T00:00:{seq:02d}Z", "job", attempt, record)


def _fold(*events: tuple[int, Record]) -> JobView:
    view = JobView()
    for seq, (attempt, record) in enumerate(events, 1):
        view.apply(_event(seq, attempt, record))
    return view


RUN: tuple[tuple[int, Record], ...] = (
    (0, StateRecord(JobState.QUEUED, "queued")),
    (1, StateRecord(JobState.STARTING)),
    (1, StateRecord(JobState.RUNNING)),
    (1, loss(1, 4)),
    (1, CheckpointRecord(1, 1, "step-1", best=True)),
    (1, loss(2, 4)),
    (1, CheckpointRecord(2, 1, "step-2")),
    (1, EvaluationRecord({"top1": 0.5})),
)


def test_a_running_job_shows_its_newest_values() -> None:
    view = _fold(*RUN)
    assert (view.state, view.attempt, view.last_seq) == (JobState.RUNNING, 1, 8)
    assert (view.progress.step, view.progress.fraction) == (2, 0.5)
    assert view.last_checkpoint == CheckpointRecord(2, 1, "step-2")
    assert view.best_checkpoint == CheckpointRecord(1, 1, "step-1", best=True)
    assert view.metrics == {"top1": 0.5}
    assert view.start_time == "2026-01-01T00:00:02Z"


def test_evaluation_progress_ends_at_the_number_of_images() -> None:
    queued = (0, StateRecord(JobState.QUEUED))
    view = _fold(queued, (1, ProgressRecord(30, 120, 9.0)), (1, ProgressRecord(60, 120, 6.0)))
    assert (view.progress.step, view.progress.total_steps) == (60, 120)
    assert (view.progress.fraction, view.progress.eta_seconds) == (0.5, 6.0)
    assert JobView.from_json(view.to_json()) == view
    view.apply(_event(4, 1, EvaluationRecord({"top1": 1.0}, images=118)))
    assert (view.progress.fraction, view.progress.total_steps) == (1.0, 118)


def test_the_reason_of_a_restart_is_not_the_error_of_the_job() -> None:
    error = JobError("WORKER_DIED", "rank 1 died")
    view = _fold(*RUN, (1, StateRecord(JobState.RUNNING, "restarting", error)))
    assert view.error is None
    assert view.state_message == "restarting"


def test_a_resumed_job_has_no_end_and_no_error() -> None:
    error = JobError("DIVERGED", "m")
    failed = _fold(*RUN, (1, StateRecord(JobState.FAILED, "m", error, 1)))
    assert (failed.error, failed.exit_code) == (error, 1)
    assert failed.end_time == "2026-01-01T00:00:09Z"
    failed.apply(_event(10, 1, StateRecord(JobState.QUEUED)))
    assert (failed.error, failed.exit_code, failed.end_time) == (None, None, "")
    assert failed.progress.eta_seconds == -1
    failed.apply(_event(11, 2, StateRecord(JobState.STARTING)))
    assert (failed.attempt, failed.start_time) == (2, "2026-01-01T00:00:02Z")


def test_an_evaluation_job_counts_images() -> None:
    view = _fold((1, EvaluationRecord({"top1": 1.0}, images=360)))
    assert (view.progress.step, view.progress.fraction) == (360, 1.0)


def test_every_field_survives_the_index() -> None:
    artifact = ArtifactRecord("digits", 3, ("model.json", "model.onnx"), 12)
    error = JobError("DIVERGED", "m", rank=0, signal=9)
    view = _fold(*RUN, (1, artifact), (1, StateRecord(JobState.FAILED, "m", error, 1)))
    assert JobView.from_json(view.to_json()) == view


def test_the_newest_curvature_check_is_kept() -> None:
    check = replace(loss(2, 4), refreshed_layers=3, kept_layers=44)
    view = _fold(*RUN, (1, check), (1, loss(3, 4)), (1, loss(4, 4)))
    assert view.last_loss == loss(4, 4)
    assert view.last_check == check
    assert JobView.from_json(view.to_json()) == view
    kept = replace(check, refreshed_layers=0, kept_layers=47)
    view.apply(_event(59, 1, kept))
    assert view.last_check == kept


def test_a_view_without_a_curvature_check_is_read() -> None:
    view = _fold(*RUN)
    body = json.loads(view.to_json())
    assert body.pop("last_check")["step"] == 1
    view.last_check = None
    assert JobView.from_json(json.dumps(body)) == view
