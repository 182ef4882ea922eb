"""The training job inside one worker process."""

from __future__ import annotations

from pathlib import Path

from multigrain.data.fingerprint import fingerprint
from multigrain.data.held_out import Split, load_held_out, save_held_out, split
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.data.inspection import inspect
from multigrain.data.pipeline import TrainingData
from multigrain.data.probe import probe
from multigrain.data.report import report_listing
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import LogRecord
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import MultiGrain, build_model
from multigrain.model.state import load_model_state
from multigrain.specs.training import DatasetSpec, TrainingSpec
from multigrain.train.compile_cache import CompileCache
from multigrain.train.evaluation import ScheduledEvaluation
from multigrain.train.loop import BestCheckpoint, CheckpointSaver, StartPoint, Trainer
from multigrain.train.start import InitialWeights, Resumption, initial_state
from multigrain.train.step import TrainStep

# What is looked at before training begins; `multigrain inspect` looks at more.
_INSPECTED = 500
_INSPECTION_SECONDS = 10.0


def run_training(ctx: WorkerContext) -> Outcome:
    """Implements ``multigrain.train.run``."""
    spec = ctx.request.training
    if spec is None:
        raise ValueError("a training worker was started for a job that is not a training job")
    folder = scan(Path(spec.dataset.train_path), ctx.image_limits)
    report_listing(ctx, folder)
    now = fingerprint(folder, ctx.reporter.alive) if ctx.rank == 0 else None
    resumption = Resumption.find(ctx)
    if resumption is None:
        classes = class_count(spec, folder)
    else:
        folder = resumption.dataset(folder, now, allow_changes=spec.dataset.allow_changes)
        classes = resumption.classes
    # Every worker reads the same sample, so that either all of them fail or none.
    probe(folder, spec.dataset.max_unreadable, seed=spec.seed)
    held_out = None
    if spec.dataset.val_fraction:
        parts = _split(ctx, spec.dataset, folder)
        folder, held_out = parts.train, parts.held_out
    if ctx.rank == 0 and resumption is None:
        _inspect(ctx, spec, folder, held_out)
    model_spec = spec.model.model_copy(update={"classes": classes})
    model = build_model(spec.model, classes, seed=spec.seed)
    data = TrainingData(
        folder, spec, rank=ctx.rank, world=ctx.world, threads=spec.dataset.loader_threads
    )
    if ctx.rank == 0:
        _warn_of_repeated_images(ctx, spec, len(folder))
    step = TrainStep(
        model,
        JointObjective(spec.objective),
        spec,
        world=ctx.world,
        steps_per_epoch=data.steps_per_epoch,
        cache=CompileCache.of_job(ctx, spec),
    )
    best = BestCheckpoint(spec.evaluation.metric)
    start = StartPoint()
    if resumption is not None:
        start = resumption.load(model, step, best)
    elif spec.initial_weights:
        path = Path(ctx.request.weights_path) if ctx.request.weights_path else None
        _load_initial_weights(ctx, initial_state(spec, model, ctx.roots, path), model, step)
    if ctx.rank == 0 and spec.optimizer.kind == "thor":
        _log(ctx, step.curvature_table())
    saver = CheckpointSaver(
        ctx,
        spec.checkpointing,
        model_spec,
        folder.classes,
        model,
        step,
        best,
        dataset=now,
        last_saved=start.step,
    )
    evaluate = None
    if spec.evaluation.every_epochs:
        evaluate = ScheduledEvaluation(ctx, spec, model, folder, held_out)
    return Trainer(ctx, spec, data, step, saver, start, evaluate).run()


def _split(ctx: WorkerContext, dataset: DatasetSpec, folder: ImageFolder) -> Split:
    """Holds out ``dataset.val_fraction`` of the images: those of the earlier attempts, if any.

    Raises:
        MultigrainError: DATASET, if no image can be held out; STORAGE, if the choice cannot be
            recorded.
    """
    record = ctx.folder.held_out
    parts = split(
        folder,
        dataset.val_fraction,
        dataset.split_seed,
        earlier=load_held_out(record) or (),
        alive=ctx.reporter.alive,
    )
    if ctx.rank == 0:
        try:
            save_held_out(record, parts, dataset.val_fraction, dataset.split_seed)
        except OSError as error:
            raise MultigrainError(
                ErrorKind.STORAGE, f"{record.name} cannot be written: {error.strerror}"
            ) from error
        trained, scored = len(parts.train), len(parts.held_out)
        fields = {"train": str(trained), "held_out": str(scored)}
        message = (
            f"{scored:,} of {len(folder):,} images are held out (dataset.val_fraction "
            f"{dataset.val_fraction:g}, split_seed {dataset.split_seed}); training on {trained:,}"
        )
        ctx.reporter.emit(LogRecord("INFO", message, ctx.rank, fields))
    return parts


def _inspect(
    ctx: WorkerContext, spec: TrainingSpec, train: ImageFolder, held_out: ImageFolder | None
) -> None:
    """Reports what is in the dataset; looks at a sample only, so that training soon begins."""
    if held_out is None and spec.dataset.val_path:
        held_out = scan(Path(spec.dataset.val_path), ctx.image_limits)
    found = inspect(
        train,
        held_out,
        resolution=spec.model.image_size,
        images=_INSPECTED,
        seconds=_INSPECTION_SECONDS,
        alive=ctx.reporter.alive,
    )
    ctx.reporter.emit(LogRecord("INFO", f"dataset: {found.line}", ctx.rank, found.fields))
    for warning in found.warnings:
        ctx.reporter.emit(LogRecord("WARNING", warning, ctx.rank))


def class_count(spec: TrainingSpec, folder: ImageFolder) -> int:
    """Returns the classifier's outputs: ``spec.model.classes``, or one per class folder if 0.

    Raises:
        MultigrainError: INVALID_FIELD, if there are more class folders than outputs.
    """
    found = len(folder.classes)
    if spec.model.classes and spec.model.classes < found:
        raise MultigrainError.field(
            "spec.model.classes",
            f"is {spec.model.classes}, but the training set has {found} class folders; set at "
            "least that many, or 0 for the number of folders",
        )
    return spec.model.classes or found


def _load_initial_weights(
    ctx: WorkerContext, initial: InitialWeights, model: MultiGrain, step: TrainStep
) -> None:
    load_model_state(model, initial.state)
    step.remember_statistics()
    if ctx.rank == 0:
        for note in initial.notes:
            _log(ctx, note)


def _warn_of_repeated_images(ctx: WorkerContext, spec: TrainingSpec, images: int) -> None:
    """Warns if a step takes more different images than the training set has."""
    repeats = spec.augmentation.repeats
    taken = -(-spec.schedule.batch_size // repeats) * ctx.world
    if taken <= images:
        return
    largest = images // ctx.world * repeats
    message = (
        f"a step takes {taken} different images over all workers, but the training set has "
        f"{images}: some repeat within a step; schedule.batch_size {largest} avoids that"
    )
    ctx.reporter.emit(LogRecord("WARNING", message, ctx.rank))


def _log(ctx: WorkerContext, message: str) -> None:
    ctx.reporter.emit(LogRecord("INFO", message, ctx.rank))
