"""Scheduled evaluations and the best checkpoint, with THOR."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from multigrain.checkpoint import store
from multigrain.data.image_folder import scan
from multigrain.events.records import CheckpointRecord, EvaluationRecord, LossRecord
from multigrain.images.parameters import Preprocessing
from multigrain.jobs.context import WorkerContext
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import TrainingSpec
from multigrain.train.loop import BestCheckpoint, CheckpointSaver, StartPoint, Trainer
from multigrain.train.start import Resumption
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter
from tests.evaluate.measure import ALL_TASKS, measure
from tests.train.step_pool import StepPool
from tests.train.tiny import CLASSES, SIDE, tiny_spec

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]

PER_EPOCH = 2


class Data:
    """Reproducible batches."""

    steps_per_epoch = PER_EPOCH
    unreadable: tuple[str, ...] = ()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        for number in range(first_step, PER_EPOCH):
            random = np.random.default_rng(epoch * PER_EPOCH + number)
            yield SimpleNamespace(
                images=random.normal(size=(6, 3, SIDE, SIDE)).astype(np.float32),
                labels=np.array([0, 0, 1, 1, 2, 2], np.int32),
                instances=np.array([0, 0, 1, 1, 2, 2], np.int32),
            )


def spec_of(epochs: int, metric: str) -> TrainingSpec:
    base = tiny_spec("thor")
    return base.model_copy(
        update={
            "schedule": base.schedule.model_copy(update={"epochs": epochs}),
            "checkpointing": base.checkpointing.model_copy(
                update={"every_epochs": 1, "every_steps": 0, "keep": 1}
            ),
            "evaluation": base.evaluation.model_copy(update={"every_epochs": 1, "metric": metric}),
        }
    )


def attempt(
    shared_step: StepPool,
    tmp_path: Path,
    figures: list[float],
    *,
    epochs: int,
    metric: str = "top1",
    look: bool = False,
    stopped_in: int = 0,
) -> RecordingReporter:
    """Trains from the newest checkpoint to the end of ``epochs``; the n-th epoch's metric is
    ``figures[n]``. ``look``: the network also evaluates held-out images. ``stopped_in``: the
    epoch whose evaluation is interrupted by a stop request."""
    spec, reporter = spec_of(epochs, metric), RecordingReporter()
    request = JobRequest(
        job_id="job", kind=JobKind.TRAINING, create_time="2026-01-31T12:00:00Z", training=spec
    )
    ctx = WorkerContext(request, JobFolder(tmp_path / "job"), reporter)
    step = shared_step(spec, steps_per_epoch=PER_EPOCH)
    model = step._model
    best = BestCheckpoint(spec.evaluation.metric)
    resumption = Resumption.find(ctx)
    start = resumption.load(model, step, best) if resumption is not None else StartPoint()
    classes = tuple(str(number) for number in range(CLASSES))
    model_spec = spec.model.model_copy(update={"classes": CLASSES})
    saver = CheckpointSaver(
        ctx, spec.checkpointing, model_spec, classes, model, step, best, last_saved=start.step
    )

    def evaluate(done: int, epoch: int) -> EvaluationRecord | None:
        if epoch == stopped_in:
            return None
        if look:
            how = Preprocessing(size=SIDE, resize_short=SIDE)
            found = measure(model, scan(tmp_path / "val"), how, tasks=ALL_TASKS)
            assert found is not None
            assert metric in found.metrics
        return EvaluationRecord({metric: figures[epoch - 1]}, step=done, epoch=epoch)

    data: Any = Data()
    Trainer(ctx, spec, data, step, saver, start, evaluate).run()
    return reporter


def losses(reporter: RecordingReporter) -> list[float]:
    return [record.loss for record in reporter.records if isinstance(record, LossRecord)]


def bests(reporter: RecordingReporter) -> list[int]:
    return [r.step for r in reporter.records if isinstance(r, CheckpointRecord) and r.best]


def names(tmp_path: Path) -> list[str]:
    return [path.name for _, path in store.steps(tmp_path / "job" / "checkpoints")]


def test_the_best_checkpoint_survives_pruning_and_a_resumption(
    shared_step: StepPool, tmp_path: Path
) -> None:
    figures = [0.2, 0.9, 0.5, 0.9, 0.7]
    assert bests(attempt(shared_step, tmp_path, figures, epochs=3)) == [2, 4]
    assert names(tmp_path) == ["step-00000004", "step-00000006"]
    # Resumed: an equal and a lower metric replace nothing, although this process saw no better.
    resumed = attempt(shared_step, tmp_path, figures, epochs=5)
    assert len(losses(resumed)) == 4
    assert bests(resumed) == []
    assert names(tmp_path) == ["step-00000004", "step-00000010"]
    checkpoints = tmp_path / "job" / "checkpoints"
    best = store.load(store.resolve(checkpoints, "best"))
    assert (best.manifest.step, best.manifest.metrics) == (4, {"top1": 0.9})
    # It includes THOR's state.
    assert best.state.keys() == store.load(store.resolve(checkpoints, "last")).state.keys()


def test_a_better_checkpoint_after_a_resumption_replaces_the_best(
    shared_step: StepPool, tmp_path: Path
) -> None:
    figures = [3.0, 2.0, 2.5, 1.0, 4.0]
    assert bests(attempt(shared_step, tmp_path, figures, epochs=3, metric="loss")) == [2, 4]
    assert bests(attempt(shared_step, tmp_path, figures, epochs=5, metric="loss")) == [8]
    assert names(tmp_path) == ["step-00000008", "step-00000010"]


def test_a_job_stopped_in_an_evaluation_repeats_it_when_resumed(
    shared_step: StepPool, tmp_path: Path
) -> None:
    figures = [0.2, 0.9, 0.5]
    assert attempt(shared_step, tmp_path, figures, epochs=3, stopped_in=2).records[-1].step == 4
    for evaluated in ([4, 6], []):  # and not once more
        again = attempt(shared_step, tmp_path, figures, epochs=3).records
        assert [r.step for r in again if isinstance(r, EvaluationRecord)] == evaluated


def test_the_best_checkpoint_may_be_selected_by_a_retrieval_metric(
    shared_step: StepPool, tmp_path: Path
) -> None:
    figures = [0.2, 0.7, 0.5]
    assert bests(attempt(shared_step, tmp_path, figures, epochs=3, metric="copy_map")) == [2, 4]
    best = store.read_manifest(store.resolve(tmp_path / "job" / "checkpoints", "best"))
    assert (best.step, best.metrics) == (4, {"copy_map": 0.7})


def test_evaluation_does_not_change_thors_steps(shared_step: StepPool, tmp_path: Path) -> None:
    for name in ("with", "without"):
        write_dataset(tmp_path / name / "val", classes=CLASSES, each=2, size=SIDE)
    seen = attempt(shared_step, tmp_path / "with", [0.1] * 4, epochs=4, look=True)
    unseen = attempt(shared_step, tmp_path / "without", [0.1] * 4, epochs=4)
    assert losses(seen) == losses(unseen)
    assert any(r.refreshed_layers for r in seen.records if isinstance(r, LossRecord) and r.step > 3)
