"""Going on from the checkpoint that an earlier attempt left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multigrain.checkpoint import store
from multigrain.checkpoint.dataset import check_dataset
from multigrain.checkpoint.store import Checkpoint
from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.data.folder import ImageFolder
from multigrain.events.newest import newest_record
from multigrain.events.records import CheckpointRecord, LogRecord
from multigrain.jobs.context import WorkerContext
from multigrain.model.multigrain import MultiGrain
from multigrain.model.state import load_model_state
from multigrain.train.best import Best
from multigrain.train.step import TrainStep
from multigrain.train.trainer import Start


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
        return folder.relabelled(manifest.labels) if allow_changes else folder

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
