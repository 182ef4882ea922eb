"""What was asked of a job: the content of its ``spec.json``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field

from multigrain.specs.base import Spec
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import TrainingSpec


class JobKind(StrEnum):
    """Names of ``multigrain.v1.JobKind`` without their prefix."""

    TRAINING = "TRAINING"
    EVALUATION = "EVALUATION"
    EXPORT = "EXPORT"


class JobRequest(Spec):
    """A submitted job. Exactly one of the three specifications is set, that of ``kind``.

    ``weights_path`` (evaluation, export) is the checkpoint folder or weights file that the
    daemon resolved the WeightsSource to; ``models_dir`` (export) is where bundles go.
    """

    job_id: str
    kind: JobKind
    name: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    request_id: str = ""
    body_sha256: str = ""
    create_time: str
    training: TrainingSpec | None = None
    evaluation: EvaluationSpec | None = None
    export: ExportSpec | None = None
    weights_path: str = ""
    models_dir: str = ""

    @classmethod
    def load(cls, path: Path) -> JobRequest:
        return cls.model_validate_json(path.read_bytes())

    @property
    def spec(self) -> TrainingSpec | EvaluationSpec | ExportSpec:
        spec = {
            JobKind.TRAINING: self.training,
            JobKind.EVALUATION: self.evaluation,
            JobKind.EXPORT: self.export,
        }[self.kind]
        if spec is None:
            raise ValueError(f"job {self.job_id} of kind {self.kind} has no {self.kind.lower()}")
        return spec
