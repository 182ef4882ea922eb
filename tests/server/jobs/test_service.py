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
from multigrain_server.convert.jobs import job_message
from multigrain_server.jobs import event_feed, service
from multigrain_server.jobs.files import append_event
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.runner_process import RunnerProcess
from multigrain_server.jobs.submission import CheckedSpec, Submission
from tests.server.jobs.conftest import FAKE_RUNNER, JobServer, MakeServer, states


async def test_cancel_ends_a_queued_job_at_once(make_server: MakeServer) -> None:
    server = make_server("cpu:0")
    job = await server.submit()
    assert server.jobs.cancel(job.job_id).state is JobState.CANCELLED
    assert server.jobs.cancel(job.job_id).state is JobState.CANCELLED
    assert states(server, job.job_id) == ["QUEUED", "CANCELLED"]


async def test_events_written_by_the_daemon_are_counted(
    make_server: MakeServer,
) -> None:
    server = make_server("cpu:0")
    kinds: list[str] = []
    server.supervisor._on_event = kinds.append
    job = await server.submit()
    server.jobs.cancel(job.job_id)
    assert kinds == ["state"]


async def test_cancel_lets_the_runner_save(server: JobServer) -> None:
    job = await server.submit(events="10000", pause="0.01")
    await server.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    assert server.jobs.cancel(job.job_id).state is JobState.STOPPING
    assert server.jobs.cancel(job.job_id).state is JobState.STOPPING
    job = await server.ended(job.job_id)
    assert (job.state, job.state_message) == (JobState.CANCELLED, "stopped")
    assert states(server, job.job_id)[-2:] == ["STOPPING", "CANCELLED"]


async def test_cancel_right_after_the_start_is_not_lost(server: JobServer) -> None:
    job = await server.submit(events="10000", pause="0.01")
    server.jobs.cancel(job.job_id)
    job = await server.ended(job.job_id)
    assert job.state is JobState.CANCELLED


async def test_cancel_survives_a_daemon_that_dies_before_it_signals_the_runner(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_server()
    job = await first.submit(events="100000", pause="0.01")
    await first.until(job.job_id, lambda j: j.view.last_seq > 3)
    with monkeypatch.context() as patch:
        patch.setattr(RunnerProcess, "terminate", lambda _: False)
        first.jobs.cancel(job.job_id)  # and the daemon dies here
        await first.supervisor.stop()
    second = make_server()
    ended = await second.ended(job.job_id)
    assert (ended.state, ended.state_message) == (JobState.CANCELLED, "stopped")


async def test_a_queued_job_canceled_by_a_dying_daemon_never_runs(
    make_server: MakeServer,
) -> None:
    first = make_server("cpu:0")
    job = await first.submit(events="3")
    first.store.save_cancel(job.job_id, True)
    await first.supervisor.stop()
    second = make_server("cpu:1")
    await second.ended(job.job_id)
    assert states(second, job.job_id) == ["QUEUED", "CANCELLED"]


async def test_cancel_waits_for_the_pid_of_a_runner_of_an_earlier_daemon(
    make_server: MakeServer,
) -> None:
    first = make_server()
    job = await first.submit(events="100000", pause="0.01")
    await first.until(job.job_id, lambda j: j.view.last_seq > 3)
    identity = first.root / "jobs" / job.job_id / "runner.json"
    identity.rename(aside := identity.with_suffix(".aside"))
    await first.supervisor.stop()
    second = make_server()  # it sees the lock, but no pid
    assert second.jobs.cancel(job.job_id).state is JobState.STOPPING
    await asyncio.sleep(0.05)
    aside.rename(identity)
    assert (await second.ended(job.job_id)).state is JobState.CANCELLED


async def test_a_runner_that_appears_late_is_supervised(make_server: MakeServer) -> None:
    server = make_server("cpu:0")
    job = await server.submit(events="3")
    folder = server.supervisor.active[job.job_id].folder
    late = await asyncio.create_subprocess_exec(*FAKE_RUNNER, str(folder.path))
    assert (await server.ended(job.job_id)).state is JobState.SUCCEEDED
    await late.wait()


async def _cancelled(server: JobServer) -> str:
    job = await server.submit(events="10000", pause="0.01")
    server.jobs.cancel(job.job_id)
    await server.ended(job.job_id)
    return job.job_id


async def test_concurrent_resumes_queue_the_job_once(
    server: JobServer,
) -> None:
    job = await _cancelled(server)
    calls = [server.jobs.resume(job) for _ in range(2)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    (refused,) = [answer for answer in results if isinstance(answer, MultigrainError)]
    assert refused.kind is ErrorKind.WRONG_STATE
    assert states(server, job).count("QUEUED") == 2


async def test_resume_is_refused_if_the_server_lacks_the_devices(make_server: MakeServer) -> None:
    spec = TrainingSpec.model_validate({"devices": {"target": "gpu", "count": 2}})

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, spec)

    first = make_server("gpu:0-1")
    job = await first.jobs.submit(Submission(JobKind.TRAINING, "a"), check)
    first.jobs.cancel(job.job_id)
    await first.ended(job.job_id)
    await first.supervisor.stop()
    second = make_server("gpu:0")
    with pytest.raises(MultigrainError, match="this server has 1") as caught:
        await second.jobs.resume(job.job_id)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert second.jobs.get(job.job_id).state is JobState.CANCELLED


async def test_a_resumed_job_ignores_the_cancel_request_of_its_last_run(
    make_server: MakeServer,
) -> None:
    first = make_server()
    job = await _cancelled(first)
    await first.supervisor.stop()
    row = first.store.get(job)
    assert row is not None
    assert row.job.cancel_requested
    # All that a daemon did which died in ResumeJob.
    assert append_event(JobFolder(first.root / "jobs" / job), StateRecord(JobState.QUEUED), 1)
    second = make_server()
    await second.until(job, lambda j: j.state is JobState.RUNNING)
    assert states(second, job)[-3:] == ["QUEUED", "STARTING", "RUNNING"]


def test_the_number_of_idle_feeds_is_limited(server: JobServer) -> None:
    read = server.feeds.open("train-read")
    read.subscribers = 1
    for number in range(service._MAX_IDLE_FEEDS + 20):
        server.feeds.open(f"train-{number}")
    assert len(server.feeds._ended) == service._MAX_IDLE_FEEDS
    assert server.feeds.open("train-read") is read


def test_a_new_feed_is_kept_if_all_others_have_subscribers(server: JobServer) -> None:
    for number in range(service._MAX_IDLE_FEEDS + 5):
        server.feeds.open(f"train-{number}").subscribers = 1
    feed = server.feeds.open("train-new")
    assert server.feeds.open("train-new") is feed


def test_a_stopping_daemon_opens_no_event_feed(server: JobServer) -> None:
    server.feeds.close()
    with pytest.raises(MultigrainError, match="shutting down") as caught:
        server.feeds.open("train-1")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.retry_after


async def test_deleting_a_job_ends_its_streams(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "BATCH_BYTES", 1)
    job = await server.submit(events="5")
    await server.ended(job.job_id)
    events = server.jobs.event_feed(job.job_id).batches(0, frozenset(), True)
    await anext(events)
    await server.jobs.delete(job.job_id)
    with pytest.raises(MultigrainError, match="was deleted") as caught:
        await anext(events)
    assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_the_reader_of_a_model_is_found_by_its_folder(server: JobServer) -> None:
    bundle = server.root / "models" / "m" / "3"

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EVALUATION, EvaluationSpec(), str(bundle))

    labels = {"events": "10000", "pause": "0.01"}
    reader = await server.jobs.submit(Submission(JobKind.EVALUATION, "b", labels=labels), check)
    assert server.jobs.references.reader_of(bundle) == reader.job_id
    assert server.jobs.references.reader_of(bundle.with_name("33")) == ""
    server.jobs.cancel(reader.job_id)
    await server.ended(reader.job_id)
    assert server.jobs.references.reader_of(bundle) == ""


async def test_the_exporter_of_a_model_is_found_by_its_name(server: JobServer) -> None:
    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EXPORT, ExportSpec(model_name="m"))

    labels = {"events": "10000", "pause": "0.01"}
    export = await server.jobs.submit(Submission(JobKind.EXPORT, "b", labels=labels), check)
    assert server.jobs.references.exporter_of("m") == export.job_id
    assert server.jobs.references.exporter_of("other") == ""
    server.jobs.cancel(export.job_id)
    await server.ended(export.job_id)
    assert server.jobs.references.exporter_of("m") == ""


async def test_a_job_keeps_the_warnings_of_its_submission(server: JobServer) -> None:
    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, TrainingSpec(), warnings=("dataset /d: odd",))

    submission = Submission(JobKind.TRAINING, "w", "key")
    job = await server.jobs.submit(submission, check)
    for found in (job, await server.jobs.submit(submission, check), server.jobs.get(job.job_id)):
        assert list(job_message(found).warnings) == ["dataset /d: odd"]
    await server.ended(job.job_id)


async def test_resume_is_refused_if_the_images_have_changed(
    server: JobServer, tmp_path: Path
) -> None:
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
        job = await server.jobs.submit(Submission(JobKind.TRAINING, "a", labels=labels), check)
        manifest = CheckpointManifest(
            step=7, epoch=1, model=ModelSpec(classes=2), dataset=fingerprint(scan(root))
        )
        checkpoints = server.root / "jobs" / job.job_id / "checkpoints"
        store.save(checkpoints, manifest, {"w": np.ones(1, np.float32)}, {})
        return await server.ended(job.job_id)

    strict, lenient = [await submit(allow_changes=allowed) for allowed in (False, True)]
    await server.jobs.resume(strict.job_id)  # nothing has changed yet
    await server.ended(strict.job_id)
    (root / "b" / "1.jpg").write_bytes(b"x")
    with pytest.raises(MultigrainError, match="'b' has 2 images instead of 1") as caught:
        await server.jobs.resume(strict.job_id)
    assert caught.value.kind is ErrorKind.WRONG_STATE
    assert "step 7" in caught.value.message
    assert server.jobs.get(strict.job_id).state is JobState.FAILED
    resumed = await server.jobs.resume(lenient.job_id)
    assert resumed.state is JobState.QUEUED
    await server.ended(lenient.job_id)
    shutil.rmtree(root)
    with pytest.raises(MultigrainError, match="does not exist"):
        await server.jobs.resume(strict.job_id)


async def test_a_queued_job_keeps_a_checkpoint_that_its_owner_deletes(
    make_server: MakeServer,
) -> None:
    server = make_server("cpu:0")
    source = await server.submit()
    checkpoints = server.root / "jobs" / source.job_id / "checkpoints"
    manifest = CheckpointManifest(step=1, epoch=1, model=ModelSpec(classes=2))
    store.save(checkpoints, manifest, {"w": np.ones(3, np.float32)}, {})
    weights = str(checkpoints / "step-00000001")

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EVALUATION, EvaluationSpec(), weights, of_job=True)

    waits = await server.jobs.submit(Submission(JobKind.EVALUATION, "b"), check)
    server.jobs.cancel(source.job_id)
    await server.jobs.delete(source.job_id)
    assert load_weights(Path(waits.request.weights_path)).checkpoint == "step-00000001"
    with pytest.raises(MultigrainError, match="try again"):
        await server.jobs.submit(Submission(JobKind.EVALUATION, "c"), check)
    assert os.listdir(server.root / "jobs") == [waits.job_id]


async def test_a_job_whose_checkpoints_are_in_use_is_not_deleted(server: JobServer) -> None:
    source = await server.submit(events="1")
    await server.ended(source.job_id)
    weights = str(server.root / "jobs" / source.job_id / "checkpoints" / "step-1")

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EVALUATION, EvaluationSpec(), weights)

    labels = {"events": "10000", "pause": "0.01"}
    reader = await server.jobs.submit(Submission(JobKind.EVALUATION, "b", labels=labels), check)
    with pytest.raises(MultigrainError, match=f"job {reader.job_id} reads its checkpoints"):
        await server.jobs.delete(source.job_id)
    server.jobs.cancel(reader.job_id)
    await server.ended(reader.job_id)

    async def check_weights() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, TrainingSpec(initial_weights=weights))

    heir = await server.jobs.submit(Submission(JobKind.TRAINING, "b", labels=labels), check_weights)
    with pytest.raises(MultigrainError, match=f"job {heir.job_id} reads its checkpoints"):
        await server.jobs.delete(source.job_id)
    server.jobs.cancel(heir.job_id)
    await server.ended(heir.job_id)
    await server.jobs.delete(heir.job_id)
    await server.jobs.delete(source.job_id)
    assert os.listdir(server.root / "jobs") == [reader.job_id]
