"""Resuming from a checkpoint: the dataset check and the event log."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multigrain.checkpoint import store
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventWriter, newest_record
from multigrain.events.records import CheckpointRecord, LogRecord, LossRecord
from multigrain.specs.training import TrainingSpec
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter
from tests.train.tiny_job import TinyJob

pytestmark = pytest.mark.mindspore


def spec(root: Path, *, allow_changes: bool = False, max_steps: int = 2) -> TrainingSpec:
    """Saves after every step."""
    return TrainingSpec.model_validate(
        {
            "dataset": {"train_path": str(root), "allow_changes": allow_changes},
            "model": {"image_size": 16},
            "optimizer": {"kind": "momentum"},
            "schedule": {
                "epochs": 9, "max_steps": max_steps, "batch_size": 6, "length_factor": 2.0,
                "learning_rate": {"kind": "linear", "init": 0.05},
            },
            "checkpointing": {"every_steps": 1, "every_epochs": 0},
        }
    )  # fmt: skip


def checkpoints(reporter: RecordingReporter) -> list[CheckpointRecord]:
    return [record for record in reporter.records if isinstance(record, CheckpointRecord)]


def add_image(root: Path) -> None:
    shutil.copy(root / "c1" / "000.png", root / "c1" / "new.png")


def remove_image(root: Path) -> None:
    (root / "c0" / "001.png").unlink()


def rename_image(root: Path) -> None:
    (root / "c0" / "001.png").rename(root / "c0" / "other.png")


def enlarge_image(root: Path) -> None:
    with (root / "c2" / "003.png").open("ab") as file:
        file.write(b"\0")


def add_class(root: Path) -> None:
    shutil.copytree(root / "c0", root / "d")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_image, "13 images in 3 classes instead of 12 in 3: 'c1' has 5 images instead of 4"),
        (remove_image, "11 images in 3 classes instead of 12 in 3: 'c0' has 3 images instead of 4"),
        (rename_image, "12 images in 3 classes: 'c0' has as many images, but other names or sizes"),
        (enlarge_image, "'c2' has as many images, but other names or sizes"),
        (add_class, "16 images in 4 classes instead of 12 in 3: with the new class 'd'"),
    ],
)  # fmt: skip
def test_a_job_whose_images_have_changed_is_not_resumed(
    tmp_path: Path, begun: Path, change: object, said: str
) -> None:
    assert callable(change)
    root = write_dataset(tmp_path / "data")
    shutil.copytree(begun, tmp_path / "job")
    # The folder may have moved: only names within it and sizes count.
    change(root)
    with pytest.raises(MultigrainError) as caught:
        TinyJob(tmp_path / "job", spec(root, max_steps=3)).run(RecordingReporter())
    assert caught.value.kind is ErrorKind.DATASET
    assert said in caught.value.message
    assert "step 2" in caught.value.message
    assert "dataset.allow_changes" in caught.value.message


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job after two steps."""
    folder = tmp_path_factory.mktemp("begun")
    root = write_dataset(folder / "data")
    TinyJob(folder / "job", spec(root)).run(RecordingReporter())
    return folder / "job"


def test_allowed_changes_are_logged_and_the_job_resumes(tmp_path: Path, begun: Path) -> None:
    root = write_dataset(tmp_path / "data")
    shutil.copytree(begun, tmp_path / "job")
    add_image(root)
    shutil.rmtree(root / "c0")
    reporter = RecordingReporter()
    job = TinyJob(tmp_path / "job", spec(root, allow_changes=True, max_steps=3))
    assert not job.run(reporter).stopped
    warnings = [r.message for r in reporter.records
                if isinstance(r, LogRecord) and r.level == "WARNING"]  # fmt: skip
    assert len(warnings) == 1
    assert "without the class 'c0'; 'c1' has 5 images instead of 4" in warnings[0]
    # Classes keep their indices, and the next attempt compares with the present images.
    newest = store.read_manifest(store.resolve(job.folder.checkpoints, "last"))
    assert (newest.step, newest.labels) == (3, ("c0", "c1", "c2"))
    assert newest.dataset is not None
    assert newest.dataset.images == 9


def test_a_checkpoint_without_a_fingerprint_is_resumed_from(tmp_path: Path, begun: Path) -> None:
    root = write_dataset(tmp_path / "data")
    shutil.copytree(begun, tmp_path / "job")
    job = TinyJob(tmp_path / "job", spec(root, max_steps=3))
    for _, path in store.steps(job.folder.checkpoints):
        old = store.read_manifest(path).model_dump_json(exclude={"dataset"})
        (path / "manifest.json").write_text(old)
    add_image(root)
    reporter = RecordingReporter()
    job.run(reporter)
    assert [r.step for r in reporter.records if isinstance(r, LossRecord)] == [3]


def test_an_unreported_checkpoint_is_reported_by_the_next_attempt(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    job = TinyJob(tmp_path / "job", spec(root, max_steps=3))
    command = [sys.executable, "-m", "tests.train.killed_training", str(job.path)]
    ended = subprocess.run(
        [*command, job.spec.model_dump_json()],
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL
    told = newest_record(job.folder.events, CheckpointRecord)
    assert told is not None
    assert told.step == 1
    assert store.resolve(job.folder.checkpoints, "last").name == "step-00000002"

    reporter = RecordingReporter()
    job.run(reporter)
    assert [r.step for r in reporter.records if isinstance(r, LossRecord)] == [3]
    found = checkpoints(reporter)
    assert [record.step for record in found] == [2, 3]
    assert found[0].bytes == told.bytes
    assert found[0].name == "step-00000002"


def test_a_reported_checkpoint_is_not_reported_again(tmp_path: Path, begun: Path) -> None:
    root = write_dataset(tmp_path / "data")
    shutil.copytree(begun, tmp_path / "job")
    job = TinyJob(tmp_path / "job", spec(root, max_steps=3))
    last = store.resolve(job.folder.checkpoints, "last")
    with EventWriter(job.folder.events, "job") as writer:
        writer.append(store.record_of(last, store.read_manifest(last)), 1)
    reporter = RecordingReporter()
    job.run(reporter)
    assert [record.step for record in checkpoints(reporter)] == [3]
