"""Writes a training job's checkpoints and says so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from mindspore import nn

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.jobs.context import WorkerContext
from multigrain.model.state import model_state
from multigrain.spec.training import CheckpointSpec, ModelSpec
from multigrain.train.best import Best
from multigrain.train.step import TrainStep


@dataclass
class Saver:
    """Saves from rank 0; the other ranks only take part in averaging the statistics.

    Args:
        model_spec: with the number of classes filled in, as the manifest needs it.
        dataset: what is trained on; needed on rank 0.
    """

    ctx: WorkerContext
    spec: CheckpointSpec
    model_spec: ModelSpec
    labels: tuple[str, ...]
    model: nn.Cell
    step: TrainStep
    best: Best
    dataset: DatasetFingerprint | None = None
    last_saved: int = 0

    def due(self, step: int, epoch_end: int | None) -> bool:
        """Whether a checkpoint is due after ``step``, which ended epoch ``epoch_end`` (or none)."""
        by_steps = self.spec.every_steps > 0 and step % self.spec.every_steps == 0
        by_epochs = (
            epoch_end is not None
            and self.spec.every_epochs > 0
            and epoch_end % self.spec.every_epochs == 0
        )
        return by_steps or by_epochs

    def save(self, step: int, epoch: int, metrics: dict[str, float], *, is_best: bool) -> None:
        """Writes ``step-XXXXXXXX`` and removes what is older than the last ``keep``.

        Raises:
            MultigrainError: STORAGE when the disk is full or cannot be written.
        """
        self.last_saved = step
        self.step.sync_statistics()
        if self.ctx.rank != 0:
            return
        manifest = CheckpointManifest(
            step=step,
            epoch=epoch,
            model=self.model_spec,
            labels=self.labels,
            metrics=metrics,
            position={
                "best_metric": self.best.metric,
                "best_value": self.best.value,
                "best_step": self.best.step,
                "best": int(is_best),
            },
            job_id=self.ctx.request.job_id,
            create_time=datetime.now(UTC).isoformat(),
            dataset=self.dataset,
        )
        folder = self.ctx.folder.checkpoints
        record = store.save(folder, manifest, model_state(self.model), self.step.state())
        self.ctx.reporter.emit(record)
        protect = {self.best.step} if self.best.step else set()
        store.prune(folder, keep=self.spec.keep, protect=protect)
