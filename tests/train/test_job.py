"""A training job in one process: resumption and initial weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from multigrain.checkpoint import store
from multigrain.data.held_out import recorded_split
from multigrain.data.image_folder import scan
from multigrain.events.records import EvaluationRecord, LogRecord, LossRecord, Record
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.model.multigrain import MultiGrain
from multigrain.model.state import model_state
from multigrain.specs.training import TrainingSpec
from multigrain.train import job
from multigrain.train.compile_cache import CompileCache
from multigrain.train.evaluation import ScheduledEvaluation
from tests.data.datasets import write_dataset
from tests.train.tiny import tiny_model
from tests.train.tiny_job import TinyJob

pytestmark = pytest.mark.mindspore


@dataclass
class Reporter:
    """Records everything; requests a stop after ``stop_after`` steps."""

    stop_after: int = -1
    records: list[Record] = field(default_factory=list)

    def emit(self, record: Record) -> None:
        self.records.append(record)

    def alive(self) -> None:
        pass

    @property
    def losses(self) -> list[tuple[int, float, float, bool]]:
        return [
            (r.step, r.loss, r.instance_loss, r.skipped)
            for r in self.records
            if isinstance(r, LossRecord)
        ]

    @property
    def stop_requested(self) -> bool:
        # Read when a step begins; the run stops after it.
        return 0 <= self.stop_after <= len(self.losses) + 1


def spec(root: Path, **changes: object) -> TrainingSpec:
    body: dict[str, object] = {
        "dataset": {"train_path": str(root)},
        "model": {"image_size": 16},
        "optimizer": {"kind": "thor", "thor": {"frequency": 3, "damping_init": 0.3}},
        "schedule": {
            "epochs": 2, "batch_size": 6, "length_factor": 2.0,
            "learning_rate": {"kind": "linear", "init": 0.05},
        },
        "checkpointing": {"every_epochs": 0},
        "devices": {"count": 1},
        "seed": 3,
    }  # fmt: skip
    return TrainingSpec.model_validate(body | changes)


def run(folder: Path, training: TrainingSpec, stop_after: int = -1) -> tuple[Outcome, Reporter]:
    reporter = Reporter(stop_after)
    return TinyJob(folder, training).run(reporter), reporter


def last(folder: Path) -> store.Checkpoint:
    return store.load(store.resolve(JobFolder(folder).checkpoints, "last"))


@dataclass(frozen=True)
class UninterruptedJob:
    """A job of 2 epochs of 4 steps."""

    training: TrainingSpec
    reporter: Reporter
    checkpoint: store.Checkpoint


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> UninterruptedJob:
    folder = tmp_path_factory.mktemp("uninterrupted")
    training = spec(write_dataset(folder / "data"))
    outcome, reporter = run(folder / "job", training)
    assert not outcome.stopped
    return UninterruptedJob(training, reporter, last(folder / "job"))


# The second step compiles a graph: a stop that was requested meanwhile does not wait for the third.
@pytest.mark.parametrize(("at", "last_step"), [(3, 2), (5, 5)])
def test_a_stopped_and_resumed_job_ends_with_identical_weights(
    uninterrupted: UninterruptedJob, tmp_path: Path, at: int, last_step: int
) -> None:
    """In the middle of an epoch and of a refresh interval."""
    training, whole = uninterrupted.training, uninterrupted.reporter
    outcome, before = run(tmp_path / "parts", training, stop_after=at)
    assert outcome.stopped
    outcome, after = run(tmp_path / "parts", training)
    assert not outcome.stopped
    assert [step for step, *_ in before.losses] == list(range(1, last_step + 1))
    assert before.losses + after.losses == whole.losses
    found, expected = last(tmp_path / "parts"), uninterrupted.checkpoint
    assert found.manifest.step == expected.manifest.step == 8
    for one, other in ((found.model, expected.model), (found.state, expected.state)):
        assert one.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_array_equal(one[name], values, err_msg=name)


def test_the_same_images_are_held_out_by_every_attempt_and_are_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "data", classes=3, each=8)
    (data / "c0" / "copy.png").write_bytes((data / "c0" / "000.png").read_bytes())
    parts: list[tuple[list[str], list[str]]] = []

    class Seen(ScheduledEvaluation):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            parts.append((arguments[3].paths, arguments[4].paths))

    monkeypatch.setattr(job, "ScheduledEvaluation", Seen)
    held_out = {"train_path": str(data), "val_fraction": 0.25, "split_seed": 4}
    training = spec(data, dataset=held_out, evaluation={"every_epochs": 1})
    (tmp_path / "job").mkdir()
    outcome, before = run(tmp_path / "job", training, stop_after=2)
    assert outcome.stopped
    _, after = run(tmp_path / "job", training)
    assert parts[0] == parts[1]
    trained, scored = parts[0]
    assert sorted(trained + scored) == scan(data).paths
    assert {path[:2] for path in scored} == {"c0", "c1", "c2"}
    read = [{(data / path).read_bytes() for path in paths} for paths in (trained, scored)]
    assert not read[0] & read[1]
    recorded = recorded_split(scan(data), JobFolder(tmp_path / "job").held_out)
    assert recorded.held_out.paths == scored
    results = [r for r in after.records if isinstance(r, EvaluationRecord)]
    assert {record.images for record in results} == {len(scored)}
    lines = [r.message for r in before.records if isinstance(r, LogRecord)]
    assert sum("are held out" in line for line in lines) == 1


class EnoughSeenError(Exception):
    """Ends a job after its components were created."""


@pytest.mark.parametrize("rank", [0, 1])
def test_seed_and_worker_reach_the_parts_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    seen: dict[str, Any] = {}

    def network(_spec: object, classes: int, *, seed: int) -> MultiGrain:
        seen.update(classes=classes, seed=seed)
        return tiny_model()

    def step(*_arguments: object, **options: object) -> None:
        seen["step"] = options
        raise EnoughSeenError

    def data(*_arguments: object, **options: int) -> Any:
        seen["data"] = options
        return SimpleNamespace(steps_per_epoch=77)

    for name, made in (("build_model", network), ("TrainingData", data), ("TrainStep", step)):
        monkeypatch.setattr(job, name, made)
    training = spec(write_dataset(tmp_path / "data"), seed=5)
    request = JobRequest(
        job_id="job",
        kind=JobKind.TRAINING,
        create_time="2026-01-31T12:00:00Z",
        training=training,
    )
    folder = JobFolder(tmp_path / "job")
    with pytest.raises(EnoughSeenError):
        job.run_training(WorkerContext(request, folder, Reporter(), rank=rank, world=3))
    assert isinstance(seen["step"].pop("cache"), CompileCache)
    assert seen == {
        "classes": 3,
        "seed": 5,
        "data": {"rank": rank, "world": 3, "threads": 0},
        "step": {"world": 3, "steps_per_epoch": 77},
    }


def weights(path: Path, **changes: float) -> Path:
    """Weights of the tiny network in a file, with changed statistics."""
    state = model_state(tiny_model())
    state["trunk.bn1.moving_mean"] = np.full(5, 0.25, np.float32)
    state |= {name: np.asarray(value, np.float32) for name, value in changes.items()}
    save_file(state, path)
    return path


def test_a_skipped_first_step_keeps_the_statistics_of_initial_weights(tmp_path: Path) -> None:
    given = weights(tmp_path / "weights.safetensors")
    training = spec(
        write_dataset(tmp_path / "data"),
        initial_weights=str(given),
        # Overflows float32: the gradients of the first step are non-finite.
        optimizer={"kind": "momentum", "loss_scale": 1e39},
        schedule={"epochs": 1, "max_steps": 1, "batch_size": 6},
    )
    _, reporter = run(tmp_path / "job", training)
    assert [skipped for *_, skipped in reporter.losses] == [True]
    np.testing.assert_array_equal(
        last(tmp_path / "job").model["trunk.bn1.moving_mean"], np.full(5, 0.25, np.float32)
    )


def test_a_fixed_exponent_is_the_specifications(
    tmp_path: Path,
) -> None:
    given = weights(tmp_path / "weights.safetensors", **{"pool.p": 1.0})
    training = spec(
        write_dataset(tmp_path / "data"),
        initial_weights=str(given),
        model={"image_size": 16, "gem_p": 4.0},
        optimizer={"kind": "momentum"},
        schedule={"epochs": 1, "max_steps": 1, "batch_size": 6},
    )
    run(tmp_path / "job", training)
    checkpoint = last(tmp_path / "job")
    assert checkpoint.manifest.model.gem_p == 4.0
    assert checkpoint.model["pool.p"] == 4.0


def test_the_source_of_initial_weights_is_logged(tmp_path: Path) -> None:
    given = weights(tmp_path / "weights.safetensors", **{"classifier.bias": 0.0})
    training = spec(
        write_dataset(tmp_path / "data"),
        initial_weights=str(given),
        optimizer={"kind": "momentum"},
        schedule={"epochs": 1, "max_steps": 1, "batch_size": 6},
    )
    _, reporter = run(tmp_path / "job", training)
    logs = [record.message for record in reporter.records if isinstance(record, LogRecord)]
    assert "starting from the given weights" in logs
    assert any("starts from random weights" in message for message in logs)


@pytest.mark.parametrize(("batch", "warned"), [(36, False), (48, True)])
def test_a_step_with_more_images_than_the_dataset_logs_a_warning(
    tmp_path: Path, batch: int, warned: bool
) -> None:
    training = spec(
        write_dataset(tmp_path / "data"),
        optimizer={"kind": "momentum"},
        augmentation={"repeats": 3},
        schedule={"epochs": 1, "max_steps": 1, "batch_size": batch},
    )
    _, reporter = run(tmp_path / "job", training)
    logs = [record.message for record in reporter.records if isinstance(record, LogRecord)]
    assert any("schedule.batch_size 36" in message for message in logs) == warned


def test_a_learned_exponent_starts_from_the_initial_weights(tmp_path: Path) -> None:
    given = weights(tmp_path / "weights.safetensors", **{"pool.p": 2.5})
    training = spec(
        write_dataset(tmp_path / "data"),
        initial_weights=str(given),
        model={"image_size": 16, "learn_gem_p": True},
        optimizer={"kind": "momentum"},
        schedule={"epochs": 1, "max_steps": 1, "batch_size": 6,
                  "learning_rate": {"kind": "linear", "init": 1e-6}},
    )  # fmt: skip
    run(tmp_path / "job", training)
    assert last(tmp_path / "job").model["pool.p"] == pytest.approx(2.5, abs=1e-3)
