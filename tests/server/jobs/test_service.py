"""Operations on jobs: event feeds, cancel, resume, delete, and what jobs depend on."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.data.fingerprint import fingerprint
from multigrain.data.image_folder import scan
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import JobState, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import ModelSpec, TrainingSpec
from multigrain.weights.load import load_weights
from multigrain_server.jobs import event_feed, service
from multigrain_server.jobs.files import append_event
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.runner_process import RunnerProcess
from multigrain_server.jobs.submission import CheckedSpec, Submission
from tests.server.jobs.conftest import FAKE_RUNNER, JobSide, MakeSide, states


async def test_cancel_ends_a_queued_job_at_once(make_side: MakeSide) -> None:
    side = make_side("cpu:0")
    job = await side.submit()
    assert side.jobs.cancel(job.job_id).state is JobState.CANCELLED
    assert side.jobs.cancel(job.job_id).state is JobState.CANCELLED
    assert states(side, job.job_id) == ["QUEUED", "CANCELLED"]


async def test_events_written_by_the_daemon_are_counted(
    make_side: MakeSide,
) -> None:
    side = make_side("cpu:0")
    kinds: list[str] = []
    side.supervisor._on_event = kinds.append
    job = await side.submit()
    side.jobs.cancel(job.job_id)
    assert kinds == ["state"]


async def test_cancel_lets_the_runner_save(side: JobSide) -> None:
    job = await side.submit(events="10000", pause="0.01")
    await side.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    assert side.jobs.cancel(job.job_id).state is JobState.STOPPING
    assert side.jobs.cancel(job.job_id).state is JobState.STOPPING
    job = await side.ended(job.job_id)
    assert (job.state, job.state_message) == (JobState.CANCELLED, "as asked")
    assert states(side, job.job_id)[-2:] == ["STOPPING", "CANCELLED"]


async def test_cancel_right_after_the_start_is_not_lost(side: JobSide) -> None:
    job = await side.submit(events="10000", pause="0.01")
    side.jobs.cancel(job.job_id)
    job = await side.ended(job.job_id)
    assert job.state is JobState.CANCELLED


async def test_cancel_survives_a_daemon_that_dies_before_it_signals_the_runner(
    make_side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_side()
    job = await first.submit(events="100000", pause="0.01")
    await first.until(job.job_id, lambda j: j.view.last_seq > 3)
    with monkeypatch.context() as patch:
        patch.setattr(RunnerProcess, "terminate", lambda _: False)
        first.jobs.cancel(job.job_id)  # and the daemon dies here
        await first.supervisor.stop()
    second = make_side()
    ended = await second.ended(job.job_id)
    assert (ended.state, ended.state_message) == (JobState.CANCELLED, "as asked")


async def test_a_queued_job_canceled_by_a_dying_daemon_never_runs(
    make_side: MakeSide,
) -> None:
    first = make_side("cpu:0")
    job = await first.submit(events="3")
    first.store.save_cancel(job.job_id, True)
    await first.supervisor.stop()
    second = make_side("cpu:1")
    await second.ended(job.job_id)
    assert states(second, job.job_id) == ["QUEUED", "CANCELLED"]


async def test_cancel_waits_for_the_pid_of_a_runner_of_an_earlier_daemon(
    make_side: MakeSide,
) -> None:
    first = make_side()
    job = await first.submit(events="100000", pause="0.01")
    await first.until(job.job_id, lambda j: j.view.last_seq > 3)
    identity = first.root / "jobs" / job.job_id / "runner.json"
    identity.rename(aside := identity.with_suffix(".aside"))
    await first.supervisor.stop()
    second = make_side()  # it sees the lock, but no pid
    assert second.jobs.cancel(job.job_id).state is JobState.STOPPING
    await asyncio.sleep(0.05)
    aside.rename(identity)
    assert (await second.ended(job.job_id)).state is JobState.CANCELLED


async def test_a_runner_that_appears_late_is_supervised(make_side: MakeSide) -> None:
    side = make_side("cpu:0")
    job = await side.submit(events="3")
    folder = side.supervisor.active[job.job_id].folder
    late = await asyncio.create_subprocess_exec(*FAKE_RUNNER, str(folder.path))
    assert (await side.ended(job.job_id)).state is JobState.SUCCEEDED
    await late.wait()


async def _cancelled(side: JobSide) -> str:
    job = await side.submit(events="10000", pause="0.01")
    side.jobs.cancel(job.job_id)
    await side.ended(job.job_id)
    return job.job_id


async def test_concurrent_resumes_queue_the_job_once(
    side: JobSide,
) -> None:
    job = await _cancelled(side)
    calls = [side.jobs.resume(job) for _ in range(2)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    (refused,) = [answer for answer in results if isinstance(answer, MultigrainError)]
    assert refused.kind is ErrorKind.WRONG_STATE
    assert states(side, job).count("QUEUED") == 2


async def test_resume_is_refused_if_the_server_lacks_the_devices(make_side: MakeSide) -> None:
    spec = TrainingSpec.model_validate({"devices": {"target": "gpu", "count": 2}})

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, spec)

    first = make_side("gpu:0-1")
    job = await first.jobs.submit(Submission(JobKind.TRAINING, "a"), check)
    first.jobs.cancel(job.job_id)
    await first.ended(job.job_id)
    await first.supervisor.stop()
    second = make_side("gpu:0")
    with pytest.raises(MultigrainError, match="this server has 1") as caught:
        await second.jobs.resume(job.job_id)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert second.jobs.get(job.job_id).state is JobState.CANCELLED


async def test_a_resumed_job_ignores_the_cancel_request_of_its_last_run(
    make_side: MakeSide,
) -> None:
    first = make_side()
    job = await _cancelled(first)
    await first.supervisor.stop()
    row = first.store.get(job)
    assert row is not None
    assert row.job.cancel_requested
    # All that a daemon did which died in ResumeJob.
    assert append_event(JobFolder(first.root / "jobs" / job), StateRecord(JobState.QUEUED), 1)
    second = make_side()
    await second.until(job, lambda j: j.state is JobState.RUNNING)
    assert states(second, job)[-3:] == ["QUEUED", "STARTING", "RUNNING"]


def test_the_number_of_idle_feeds_is_limited(side: JobSide) -> None:
    read = side.feeds.open("train-read")
    read.subscribers = 1
    for number in range(service._MAX_IDLE_FEEDS + 20):
        side.feeds.open(f"train-{number}")
    assert len(side.feeds._ended) == service._MAX_IDLE_FEEDS
    assert side.feeds.open("train-read") is read


def test_a_stopping_daemon_opens_no_event_feed(side: JobSide) -> None:
    side.feeds.close()
    with pytest.raises(MultigrainError, match="shutting down") as caught:
        side.feeds.open("train-1")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.retry_after


async def test_deleting_a_job_ends_its_streams(
    side: JobSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "BATCH_BYTES", 1)
    job = await side.submit(events="5")
    await side.ended(job.job_id)
    events = side.jobs.event_feed(job.job_id).batches(0, frozenset(), True)
    await anext(events)
    await side.jobs.delete(job.job_id)
    with pytest.raises(MultigrainError, match="was deleted") as caught:
        await anext(events)
    assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_the_reader_of_a_model_is_found_by_its_folder(side: JobSide) -> None:
    bundle = side.root / "models" / "m" / "3"

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EVALUATION, EvaluationSpec(), str(bundle))

    labels = {"events": "10000", "pause": "0.01"}
    reader = await side.jobs.submit(Submission(JobKind.EVALUATION, "b", labels=labels), check)
    assert side.jobs.references.reader_of(bundle) == reader.job_id
    assert side.jobs.references.reader_of(bundle.with_name("33")) == ""
    side.jobs.cancel(reader.job_id)
    await side.ended(reader.job_id)
    assert side.jobs.references.reader_of(bundle) == ""


async def test_the_exporter_of_a_model_is_found_by_its_name(side: JobSide) -> None:
    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EXPORT, ExportSpec(model_name="m"))

    labels = {"events": "10000", "pause": "0.01"}
    export = await side.jobs.submit(Submission(JobKind.EXPORT, "b", labels=labels), check)
    assert side.jobs.references.exporter_of("m") == export.job_id
    assert side.jobs.references.exporter_of("other") == ""
    side.jobs.cancel(export.job_id)
    await side.ended(export.job_id)
    assert side.jobs.references.exporter_of("m") == ""


async def test_resume_is_refused_if_the_images_have_changed(side: JobSide, tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")

    async def submit(*, allow_changes: bool) -> Job:
        spec = TrainingSpec.model_validate(
            {"dataset": {"train_path": str(root), "allow_changes": allow_changes}}
        )

        async def check() -> CheckedSpec:
            return CheckedSpec(JobKind.TRAINING, spec)

        labels = {"end": "FAILED", "events": "1"}
        job = await side.jobs.submit(Submission(JobKind.TRAINING, "a", labels=labels), check)
        manifest = CheckpointManifest(
            step=7, epoch=1, model=ModelSpec(classes=2), dataset=fingerprint(scan(root))
        )
        checkpoints = side.root / "jobs" / job.job_id / "checkpoints"
        store.save(checkpoints, manifest, {"w": np.ones(1, np.float32)}, {})
        return await side.ended(job.job_id)

    strict, lenient = [await submit(allow_changes=allowed) for allowed in (False, True)]
    await side.jobs.resume(strict.job_id)  # nothing has changed yet
    await side.ended(strict.job_id)
    (root / "b" / "1.jpg").write_bytes(b"x")
    with pytest.raises(MultigrainError, match="'b' has 2 images instead of 1") as caught:
        await side.jobs.resume(strict.job_id)
    assert caught.value.kind is ErrorKind.WRONG_STATE
    assert "step 7" in caught.value.message
    assert side.jobs.get(strict.job_id).state is JobState.FAILED
    resumed = await side.jobs.resume(lenient.job_id)
    assert resumed.state is JobState.QUEUED
    await side.ended(lenient.job_id)
    shutil.rmtree(root)
    with pytest.raises(MultigrainError, match="does not exist"):
        await side.jobs.resume(strict.job_id)


async def test_a_queued_job_keeps_a_checkpoint_that_its_owner_deletes(
    make_side: MakeSide,
) -> None:
    side = make_side("cpu:0")
    source = await side.submit()
    checkpoints = side.root / "jobs" / source.job_id / "checkpoints"
    manifest = CheckpointManifest(step=1, epoch=1, model=ModelSpec(classes=2))
    store.save(checkpoints, manifest, {"w": np.ones(3, np.float32)}, {})
    weights = str(checkpoints / "step-00000001")

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EVALUATION, EvaluationSpec(), weights, of_job=True)

    waits = await side.jobs.submit(Submission(JobKind.EVALUATION, "b"), check)
    side.jobs.cancel(source.job_id)
    await side.jobs.delete(source.job_id)
    assert load_weights(Path(waits.request.weights_path)).checkpoint == "step-00000001"
    with pytest.raises(MultigrainError, match="try again"):
        await side.jobs.submit(Submission(JobKind.EVALUATION, "c"), check)
    assert os.listdir(side.root / "jobs") == [waits.job_id]


async def test_a_job_whose_checkpoints_are_in_use_is_not_deleted(side: JobSide) -> None:
    source = await side.submit(events="1")
    await side.ended(source.job_id)
    weights = str(side.root / "jobs" / source.job_id / "checkpoints" / "step-1")

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EVALUATION, EvaluationSpec(), weights)

    labels = {"events": "10000", "pause": "0.01"}
    reader = await side.jobs.submit(Submission(JobKind.EVALUATION, "b", labels=labels), check)
    with pytest.raises(MultigrainError, match=f"job {reader.job_id} reads its checkpoints"):
        await side.jobs.delete(source.job_id)
    side.jobs.cancel(reader.job_id)
    await side.ended(reader.job_id)

    async def check_weights() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, TrainingSpec(initial_weights=weights))

    heir = await side.jobs.submit(Submission(JobKind.TRAINING, "b", labels=labels), check_weights)
    with pytest.raises(MultigrainError, match=f"job {heir.job_id} reads its checkpoints"):
        await side.jobs.delete(source.job_id)
    side.jobs.cancel(heir.job_id)
    await side.ended(heir.job_id)
    await side.jobs.delete(heir.job_id)
    await side.jobs.delete(source.job_id)
    assert os.listdir(side.root / "jobs") == [reader.job_id]
