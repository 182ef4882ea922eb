"""Checkpoints, models and images that jobs need."""

from __future__ import annotations

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
from multigrain.events.records import JobState
from multigrain.jobs.job_request import JobKind
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import ModelSpec, TrainingSpec
from multigrain.weights.load import load_weights
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.submission import CheckedSpec, Submission
from tests.server.jobs.conftest import JobSide, MakeSide


async def test_a_model_that_a_job_reads_is_known_by_its_folder(side: JobSide) -> None:
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


async def test_a_model_that_a_job_will_write_is_known_by_its_name(side: JobSide) -> None:
    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.EXPORT, ExportSpec(model_name="m"))

    labels = {"events": "10000", "pause": "0.01"}
    export = await side.jobs.submit(Submission(JobKind.EXPORT, "b", labels=labels), check)
    assert side.jobs.references.exporter_of("m") == export.job_id
    assert side.jobs.references.exporter_of("other") == ""
    side.jobs.cancel(export.job_id)
    await side.ended(export.job_id)
    assert side.jobs.references.exporter_of("m") == ""


async def test_a_training_whose_images_have_changed_is_not_resumed(
    side: JobSide, tmp_path: Path
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


async def test_a_waiting_job_keeps_the_checkpoint_that_its_owner_removes(
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
    with pytest.raises(MultigrainError, match="ask again"):
        await side.jobs.submit(Submission(JobKind.EVALUATION, "c"), check)
    assert os.listdir(side.root / "jobs") == [waits.job_id]


async def test_a_job_whose_checkpoints_are_being_read_is_not_deleted(side: JobSide) -> None:
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
