"""Puts a training job together inside one worker process."""

from __future__ import annotations

from pathlib import Path

from mindspore import nn

from multigrain.checkpoint import store
from multigrain.checkpoint.store import Checkpoint
from multigrain.data.folder import ImageFolder, scan
from multigrain.data.pipeline import TrainingData
from multigrain.data.probe import probe
from multigrain.errors import MultigrainError
from multigrain.evaluate.classification import evaluate_classification
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.images.parameters import Preprocessing
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import MultiGrain, build_model
from multigrain.model.state import load_model_state
from multigrain.spec.training import TrainingSpec
from multigrain.train.best import Best
from multigrain.train.initial import initial_state
from multigrain.train.saver import Saver
from multigrain.train.step import TrainStep
from multigrain.train.trainer import Start, Trainer


def run_training(ctx: WorkerContext) -> Outcome:
    """See ``multigrain.train.run``."""
    spec = ctx.request.training
    if spec is None:
        raise ValueError("a training worker was started for a job that is not a training job")
    folder = scan(Path(spec.dataset.train_path))
    classes = class_count(spec, folder)
    # Every worker looks at the same sample, so all of them fail, or none.
    probe(folder, spec.dataset.max_unreadable, seed=spec.seed)
    model_spec = spec.model.model_copy(update={"classes": classes})
    model = build_model(spec.model, classes, seed=spec.seed)
    data = TrainingData(
        folder, spec, rank=ctx.rank, world=ctx.world, threads=spec.dataset.loader_threads
    )
    step = TrainStep(
        model,
        JointObjective(spec.objective),
        spec,
        world=ctx.world,
        steps_per_epoch=data.steps_per_epoch,
    )
    best = Best(spec.evaluation.metric)
    start = _restore(ctx, spec, model, step, best)
    if ctx.rank == 0 and spec.optimizer.kind == "thor":
        _log(ctx, step.curvature_table())
    saver = Saver(
        ctx,
        spec.checkpointing,
        model_spec,
        folder.classes,
        model,
        step,
        best,
        last_saved=start.step,
    )
    evaluate = None
    if spec.evaluation.every_epochs and spec.dataset.val_path:
        evaluate = _Evaluation(ctx, spec, model, folder)
    return Trainer(ctx, spec, data, step, saver, start, evaluate).run()


def class_count(spec: TrainingSpec, folder: ImageFolder) -> int:
    """Outputs of the classifier: as asked, or one for each class folder.

    Raises:
        MultigrainError: INVALID_FIELD when fewer are asked than there are folders.
    """
    found = len(folder.classes)
    if spec.model.classes and spec.model.classes < found:
        raise MultigrainError.field(
            "spec.model.classes",
            f"{spec.model.classes} classes asked, but the training set has {found} class folders; "
            "give at least that many, or 0 to take the number of folders",
        )
    return spec.model.classes or found


def _restore(
    ctx: WorkerContext, spec: TrainingSpec, model: MultiGrain, step: TrainStep, best: Best
) -> Start:
    """Continues from the newest good checkpoint, or else starts from ``initial_weights``."""

    def damaged(message: str) -> None:
        if ctx.rank == 0:
            _log(ctx, message, level="WARNING")

    newest = store.latest_good(ctx.folder.checkpoints, log=damaged)
    if newest is not None:
        checkpoint: Checkpoint = store.load(newest)
        load_model_state(model, checkpoint.model)
        step.load_state(checkpoint.state)
        position = checkpoint.manifest.position
        if position.get("best_metric") == best.metric:
            best.value = float(position.get("best_value", 0.0))
            best.step = int(position.get("best_step", 0))
        if ctx.rank == 0:
            _log(ctx, f"continuing from the checkpoint of step {checkpoint.manifest.step}")
        return Start(checkpoint.manifest.step, evaluated=bool(checkpoint.manifest.metrics))
    if spec.initial_weights:
        initial = initial_state(spec, model)
        load_model_state(model, initial.state)
        step.remember_statistics()
        if ctx.rank == 0:
            for note in initial.notes:
                _log(ctx, note)
    return Start()


def _log(ctx: WorkerContext, message: str, level: str = "INFO") -> None:
    ctx.reporter.emit(LogRecord(level=level, message=message, rank=ctx.rank))


class _Evaluation:
    """Classification figures of the present weights on the held-out images."""

    def __init__(
        self, ctx: WorkerContext, spec: TrainingSpec, model: nn.Cell, train: ImageFolder
    ) -> None:
        self._ctx = ctx
        self._model = model
        # Held-out images of some of the classes will do; names decide on the numbers.
        self._folder = scan(Path(spec.dataset.val_path)).relabelled(train.classes)
        self._preprocessing = Preprocessing.standard(spec.model.image_size, spec.model.center_crop)
        self._batch_size = spec.schedule.batch_size

    def __call__(self, step: int, epoch: int) -> EvaluationRecord | None:
        """None if it was asked to stop."""
        result = evaluate_classification(
            self._model,
            self._folder,
            self._preprocessing,
            batch_size=self._batch_size,
            rank=self._ctx.rank,
            world=self._ctx.world,
            on_progress=lambda _done: self._ctx.reporter.alive(),
            should_stop=lambda: self._ctx.reporter.stop_requested,
        )
        if result is None:
            return None
        return EvaluationRecord(
            metrics=result.metrics,
            step=step,
            epoch=epoch,
            images=result.images,
            unreadable=len(result.unreadable),
            seconds=result.seconds,
            resolution=self._preprocessing.size,
        )
