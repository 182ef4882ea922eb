"""A worker context for running a job in the test process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.events.records import Record
from multigrain.jobs.context import Reporter, WorkerContext
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import ModelSpec


@dataclass
class RecordingReporter:
    """Records everything; requests a stop after ``stop_after`` heartbeats."""

    records: list[Record] = field(default_factory=list)
    alive_calls: int = 0
    stop_after: int = -1

    def emit(self, record: Record) -> None:
        self.records.append(record)

    def alive(self) -> None:
        self.alive_calls += 1

    @property
    def stop_requested(self) -> bool:
        return 0 <= self.stop_after <= self.alive_calls


def context(
    tmp_path: Path,
    *,
    weights: Path,
    evaluation: EvaluationSpec | None = None,
    export: ExportSpec | None = None,
    reporter: Reporter | None = None,
    job_id: str = "job",
) -> WorkerContext:
    request = JobRequest(
        job_id=job_id,
        kind=JobKind.EVALUATION if evaluation else JobKind.EXPORT,
        create_time="2026-01-31T12:00:00Z",
        evaluation=evaluation,
        export=export,
        weights_path=str(weights),
        models_dir=str(tmp_path / "models"),
    )
    return WorkerContext(
        request=request,
        folder=JobFolder(tmp_path / "jobs" / job_id),
        reporter=reporter or RecordingReporter(),
    )


def write_checkpoint(
    folder: Path, labels: tuple[str, ...], *, classes: int = 0, gem_p: float = 3.0, size: int = 16
) -> Path:
    """Writes a resnet18 with random weights, without zero initialization."""
    from multigrain.model.multigrain import build_model
    from multigrain.model.state import model_state

    spec = ModelSpec(
        trunk="resnet18",
        stem="small",
        classes=classes or len(labels),
        image_size=size,
        gem_p=gem_p,
        zero_init_residual=False,
        center_crop=1.0,
    )
    network = build_model(spec, spec.classes, seed=1)
    manifest = CheckpointManifest(
        step=30, epoch=2, model=spec, labels=labels, job_id="training", metrics={"top1": 0.5}
    )
    store.save(folder, manifest, model_state(network), {})
    return folder / "step-00000030"
