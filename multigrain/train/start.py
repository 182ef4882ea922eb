"""The weights that a training starts from, where it is given some."""

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
from multigrain.jobs.context import WorkerContext
from multigrain.model.multigrain import MultiGrain
from multigrain.model.state import GEM_P, load_model_state, model_state
from multigrain.specs.training import ModelSpec, TrainingSpec
from multigrain.train.loop import Best, Start
from multigrain.train.step import TrainStep
from multigrain.weights.load import Weights, load_weights

_CLASSIFIER = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class InitialWeights:
    """Weights for ``load_model_state``, and what a user should know of them."""

    state: dict[str, NDArray[np.generic]]
    notes: tuple[str, ...]


def initial_state(spec: TrainingSpec, model: MultiGrain) -> InitialWeights:
    """The weights of ``initial_weights``, fitted to the network that is trained.

    A classifier of another number of classes cannot be used: the network keeps its own, as it
    was initialized. The pooling exponent is the specification's, unless it is learned and the
    source has one.

    Raises:
        MultigrainError: NOT_FOUND or CHECKPOINT for the file; INVALID_FIELD where the
            specification asks for another trunk or stem.
    """
    weights = load_weights(Path(spec.initial_weights))
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
            f"the classifier of the initial weights {had}, this training has {model.classes}: "
            "it starts from random weights; everything else is taken"
        )
    if not spec.model.learn_gem_p or GEM_P not in state:
        state[GEM_P] = np.asarray(spec.model.gem_p, np.float32)
    return InitialWeights(state, tuple(notes))


def _check(found: ModelSpec, asked: ModelSpec) -> None:
    for name in ("trunk", "stem"):
        if getattr(found, name) != getattr(asked, name):
            raise MultigrainError.field(
                f"spec.model.{name}",
                f"is {getattr(asked, name)!r}, but initial_weights holds {getattr(found, name)!r}; "
                "give that, or other weights",
            )


def _origin(weights: Weights) -> str:
    if weights.naming and weights.spec is not None:
        names = f"{weights.naming}'s names"
        return f"starting from weights of a {weights.spec.trunk} under {names}"
    if weights.job_id:
        return f"starting from the weights of job {weights.job_id}, step {weights.step}"
    return "starting from the given weights"


# MERGED: Going on from the checkpoint that an earlier attempt left.


@dataclass(frozen=True)
class Resumption:
    """The newest good checkpoint of this job, read and checked.

    Args:
        ctx: of this worker.
        path: its folder.
        checkpoint: its content.
    """

    ctx: WorkerContext
    path: Path
    checkpoint: Checkpoint

    @classmethod
    def find(cls, ctx: WorkerContext) -> Resumption | None:
        """None for a job that has none yet. Damaged newer ones are named in the log.

        Raises:
            MultigrainError: CHECKPOINT.
        """

        def damaged(message: str) -> None:
            if ctx.rank == 0:
                ctx.reporter.emit(LogRecord("WARNING", message, ctx.rank))

        newest = store.latest_good(ctx.folder.checkpoints, log=damaged)
        return cls(ctx, newest, store.load(newest)) if newest is not None else None

    @property
    def classes(self) -> int:
        """Outputs of the network."""
        return self.checkpoint.manifest.model.classes

    def dataset(
        self, folder: ImageFolder, now: DatasetFingerprint | None, *, allow_changes: bool
    ) -> ImageFolder:
        """The images to go on with.

        Args:
            folder: as it is now.
            now: its fingerprint; only the first worker has it.
            allow_changes: ``dataset.allow_changes``.

        Raises:
            MultigrainError: DATASET if they are not those of the checkpoint and need be, or if
                there are classes that the network does not know.
        """
        manifest = self.checkpoint.manifest
        if now is not None:
            changed = check_dataset(manifest, now, allow_changes=allow_changes)
            if changed:
                text = f"{changed}; going on all the same, as dataset.allow_changes says"
                self._log(text, level="WARNING")
        return folder.relabeled(manifest.labels) if allow_changes else folder

    def load(self, model: MultiGrain, step: TrainStep, best: Best) -> Start:
        """Puts everything back as it was when the checkpoint was written."""
        manifest = self.checkpoint.manifest
        load_model_state(model, self.checkpoint.model)
        step.load_state(self.checkpoint.state)
        position = manifest.position
        if position.get("best_metric") == best.metric:
            best.value = float(position.get("best_value", 0.0))
            best.step = int(position.get("best_step", 0))
        if self.ctx.rank == 0:
            self._log(f"continuing from the checkpoint of step {manifest.step}")
            self._tell_record()
        return Start(manifest.step, evaluated=bool(manifest.metrics))

    def _tell_record(self) -> None:
        """Where the worker was killed between writing the checkpoint and saying so, or where a
        newer one has turned out damaged, the record still names another one."""
        record = store.record_of(self.path, self.checkpoint.manifest)
        if newest_record(self.ctx.folder.events, CheckpointRecord) != record:
            self.ctx.reporter.emit(record)

    def _log(self, message: str, level: str = "INFO") -> None:
        self.ctx.reporter.emit(LogRecord(level, message, self.ctx.rank))
