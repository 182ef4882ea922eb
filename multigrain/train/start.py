"""Where a training run starts: from initial weights, or from its own newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.checkpoint import store
from multigrain.checkpoint.store import Checkpoint, check_dataset
from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.data.image_folder import ImageFolder
from multigrain.errors import MultigrainError
from multigrain.events.log import newest_record
from multigrain.events.records import CheckpointRecord, LogRecord
from multigrain.files import Roots
from multigrain.jobs.context import WorkerContext
from multigrain.model.multigrain import MultiGrain
from multigrain.model.state import GEM_P, load_model_state, model_state
from multigrain.specs.training import ModelSpec, TrainingSpec
from multigrain.train.loop import BestCheckpoint, StartPoint
from multigrain.train.step import TrainStep
from multigrain.weights.load import Weights, load_weights

_CLASSIFIER = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class InitialWeights:
    """Weights for ``load_model_state``, and notes about them for the event log."""

    state: dict[str, NDArray[np.generic]]
    notes: tuple[str, ...]


def initial_state(
    spec: TrainingSpec, model: MultiGrain, roots: Roots = None, path: Path | None = None
) -> InitialWeights:
    """Loads ``spec.initial_weights`` and adapts them to ``model``.

    Args:
        spec: the training run.
        model: its network.
        roots: folders that files must be in.
        path: where the weights are, if ``spec.initial_weights`` is no path.

    A classifier with another number of classes cannot be used: the model keeps its own, randomly
    initialized one. The pooling exponent is the specification's, unless it is learned and the
    source has one.

    Raises:
        MultigrainError: NOT_FOUND or CHECKPOINT for the file; INVALID_FIELD if the specification
            names another trunk or stem.
    """
    weights = load_weights(path or Path(spec.initial_weights), roots)
    if weights.spec is not None:
        _check(weights.spec, spec.model)
    state = dict(weights.model)
    notes = [_origin(weights)]
    outputs = [state[name].shape[:1] for name in _CLASSIFIER if name in state]
    if outputs != [(model.classes,)] * len(_CLASSIFIER):
        own = model_state(model)
        state |= {name: own[name] for name in _CLASSIFIER}
        had = f"has {outputs[0][0]} classes" if outputs and outputs[0] else "is missing"
        notes.append(
            f"the classifier of the initial weights {had}, this training run has "
            f"{model.classes}: the classifier starts from random weights, everything else from "
            "the given ones"
        )
    if not spec.model.learn_gem_p or GEM_P not in state:
        state[GEM_P] = np.asarray(spec.model.gem_p, np.float32)
    return InitialWeights(state, tuple(notes))


def _check(found: ModelSpec, expected: ModelSpec) -> None:
    for name in ("trunk", "stem"):
        if getattr(found, name) != getattr(expected, name):
            raise MultigrainError.field(
                f"spec.model.{name}",
                f"is {getattr(expected, name)!r}, but initial_weights has "
                f"{getattr(found, name)!r}; use that, or other weights",
            )


def _origin(weights: Weights) -> str:
    if weights.naming and weights.spec is not None:
        return f"starting from weights of a {weights.spec.trunk} with {weights.naming}'s names"
    if weights.job_id:
        return f"starting from the weights of job {weights.job_id}, step {weights.step}"
    return "starting from the given weights"


@dataclass(frozen=True)
class Resumption:
    """Resumes a job from the newest intact checkpoint of an earlier attempt.

    Args:
        ctx: this worker's rank, folders and reporter.
        path: the checkpoint's folder.
        checkpoint: its content, verified.
    """

    ctx: WorkerContext
    path: Path
    checkpoint: Checkpoint

    @classmethod
    def find(cls, ctx: WorkerContext) -> Resumption | None:
        """Loads the newest intact checkpoint; None if there is none.

        Newer damaged ones are logged.

        Raises:
            MultigrainError: CHECKPOINT, if it cannot be read.
        """

        def damaged(message: str) -> None:
            if ctx.rank == 0:
                ctx.reporter.emit(LogRecord("WARNING", message, ctx.rank))

        newest = store.latest_good(ctx.folder.checkpoints, log=damaged)
        return cls(ctx, newest, store.load(newest)) if newest is not None else None

    @property
    def classes(self) -> int:
        """Number of outputs of the network."""
        return self.checkpoint.manifest.model.classes

    def dataset(
        self, folder: ImageFolder, now: DatasetFingerprint | None, *, allow_changes: bool
    ) -> ImageFolder:
        """Checks the training set against the checkpoint and returns the images to train on.

        Args:
            folder: the present training set.
            now: its fingerprint; None on workers other than rank 0.
            allow_changes: ``dataset.allow_changes``.

        Raises:
            MultigrainError: DATASET, if the training set has changed and changes are not allowed,
                or if it has classes that the network does not have.
        """
        manifest = self.checkpoint.manifest
        if now is not None:
            changed = check_dataset(manifest, now, allow_changes=allow_changes)
            if changed:
                text = f"{changed}; continuing, because dataset.allow_changes is set"
                self._log(text, level="WARNING")
        return folder.relabeled(manifest.labels) if allow_changes else folder

    def load(self, model: MultiGrain, step: TrainStep, best: BestCheckpoint) -> StartPoint:
        """Restores the model, the step and the best checkpoint; returns where to continue."""
        manifest = self.checkpoint.manifest
        load_model_state(model, self.checkpoint.model)
        step.load_state(self.checkpoint.state)
        position = manifest.position
        if position.get("best_metric") == best.metric:
            best.value = float(position.get("best_value", 0.0))
            best.step = int(position.get("best_step", 0))
        if self.ctx.rank == 0:
            self._log(f"continuing from the checkpoint of step {manifest.step}")
            self._report_checkpoint()
        return StartPoint(manifest.step, evaluated=bool(manifest.metrics))

    def _report_checkpoint(self) -> None:
        """Emits the checkpoint's event unless it is the newest one in the event log.

        It is not if the worker was killed between writing the checkpoint and emitting its event,
        or if a newer checkpoint is damaged.
        """
        record = store.record_of(self.path, self.checkpoint.manifest)
        if newest_record(self.ctx.folder.events, CheckpointRecord) != record:
            self.ctx.reporter.emit(record)

    def _log(self, message: str, level: str = "INFO") -> None:
        self.ctx.reporter.emit(LogRecord(level, message, self.ctx.rank))
