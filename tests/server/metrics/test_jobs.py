"""Metrics of jobs and devices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from prometheus_client.metrics_core import Metric

from multigrain.events.records import CheckpointRecord, JobState, LossRecord
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import TrainingSpec
from multigrain_server.app import App
from multigrain_server.jobs.job import Job, JobView, Progress
from multigrain_server.jobs.submission import CheckedSpec, Submission
from multigrain_server.metrics.jobs import _job_series

TIME = "2026-01-31T12:00:00Z"
UNIX = 1769860800.0


def samples_of(metrics: Iterable[Metric]) -> dict[str, float]:
    """Values by name and labels other than the job."""
    return {
        "/".join([sample.name, *(v for k, v in sample.labels.items() if k != "job")]): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_every_metric_of_a_job_has_its_value() -> None:
    point = LossRecord(
        step=11,
        total_steps=12,
        epoch=13,
        total_epochs=14,
        loss=15.0,
        classification_loss=16.0,
        instance_loss=17.0,
        learning_rate=18.0,
        damping=19.0,
        images_per_second=20.0,
        data_wait=0.21,
        step_seconds=22.0,
        skipped_total=23,
        loss_scale=24.0,
        refreshed_layers=1,
        kept_layers=2,
        stopped_layers=3,
        curvature_layers=6,
    )
    view = JobView(
        state=JobState.RUNNING,
        attempt=2,
        progress=Progress(fraction=0.5),
        last_checkpoint=CheckpointRecord(step=10, epoch=1, name="step-10"),
        checkpoint_time=TIME.replace("12:00", "11:00"),
        last_loss=point,
        last_check=point,
        metrics={"top1": 0.75},
        last_seq=25,
        last_time=TIME,
    )
    request = JobRequest(
        job_id="train-1",
        kind=JobKind.TRAINING,
        create_time=TIME,
        name="run 7",
        training=TrainingSpec(preset="defaults"),
    )
    assert samples_of(_job_series([Job(request, view)])) == {
        "multigrain_job_info/run 7/TRAINING/defaults": 1,
        "multigrain_job_state/RUNNING": 1,
        "multigrain_job_attempt": 2,
        "multigrain_job_last_seq": 25,
        "multigrain_job_event_timestamp_seconds": UNIX,
        "multigrain_job_checkpoint_timestamp_seconds": UNIX - 3600,
        "multigrain_job_progress_ratio": 0.5,
        "multigrain_job_metric/top1": 0.75,
        "multigrain_job_step": 11,
        "multigrain_job_total_steps": 12,
        "multigrain_job_loss/total": 15,
        "multigrain_job_loss/classification": 16,
        "multigrain_job_loss/instance": 17,
        "multigrain_job_learning_rate": 18,
        "multigrain_job_damping": 19,
        "multigrain_job_curvature_layers/refreshed": 1,
        "multigrain_job_curvature_layers/kept": 2,
        "multigrain_job_curvature_layers/stopped": 3,
        "multigrain_job_images_per_second": 20,
        "multigrain_job_data_wait_ratio": 0.21,
        "multigrain_job_step_seconds": 22,
        "multigrain_job_skipped_steps": 23,
        "multigrain_job_loss_scale": 24,
    }

    ended = samples_of(_job_series([Job(request, replace(view, state=JobState.SUCCEEDED))]))
    assert ended["multigrain_job_loss/total"] == 15
    for rate in ("images_per_second", "data_wait_ratio", "step_seconds"):
        assert f"multigrain_job_{rate}" not in ended


async def test_unsupervised_job_keeps_its_device_and_its_event_lag_grows(
    app: App,
) -> None:
    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, TrainingSpec())

    await app._supervisor.stop()
    job = await app.jobs.submit(Submission(JobKind.TRAINING, "x", labels={"events": "1"}), check)
    active = app._supervisor.active[job.job_id]
    async with asyncio.timeout(60):
        while active.runner is None or active.runner.alive():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    size = active.folder.events.stat().st_size
    found = samples_of(app.registry.collect())
    assert found["multigrain_job_event_lag_bytes"] == size - active.feed.offset > 0
    assert active.feed.offset > 0
    assert found["multigrain_devices/cpu/free"] == 0
    assert found["multigrain_devices/cpu/leased"] == 1
    # It has ended and still holds its device: both the index and the supervisor have it.
    active.feed.poll()
    app._store.save_view(job.job_id, active.feed.view, size)
    states = [
        sample.labels
        for metric in app.registry.collect()
        for sample in metric.samples
        if sample.name == "multigrain_job_state"
    ]
    assert states == [{"job": job.job_id, "state": "SUCCEEDED"}]
    app._calls.enter("/multigrain.v1.JobService/GetJob")
    assert app.registry.get_sample_value("multigrain_calls_in_flight") == 1
    app._calls.leave()
