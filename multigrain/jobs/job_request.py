"""A submitted job: the content of its ``spec.json``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field

from multigrain.files import MAX_DOCUMENT_BYTES, read_bytes
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
    """A submitted job. Of the three specifications only that of ``kind`` is set.

    Attributes:
        job_id: of the job.
        kind: of the job.
        name: the user's.
        labels: the user's.
        request_id: by which a retried submission is recognized.
        body_sha256: of the submission, to refuse another one with the same ``request_id``.
        create_time: RFC 3339.
        client: who submitted it: the name of a token, or a host; "" = not known.
        training: its specification.
        evaluation: its specification.
        export: its specification.
        weights_path: checkpoint folder or weights file of an evaluation or export, or that a
            training run starts from; "" = none, or ``initial_weights`` of the training run.
        hub_weights: name of a library's weights, which the runner fetches to ``weights_path``; see
            ``multigrain.specs.weights_reference``.
        models_dir: where an export writes its bundle.
        train_path: training set of the run that an export's weights come from; "" = not known.
        val_path: its validation set; "" = it had none.
        warnings: what was unusual about the datasets at submission, one line each.
        preset_reason: why the daemon chose the preset; "" = the user did.
    """

    job_id: str
    kind: JobKind
    name: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    request_id: str = ""
    body_sha256: str = ""
    create_time: str
    client: str = ""
    training: TrainingSpec | None = None
    evaluation: EvaluationSpec | None = None
    export: ExportSpec | None = None
    weights_path: str = ""
    hub_weights: str = ""
    models_dir: str = ""
    train_path: str = ""
    val_path: str = ""
    warnings: tuple[str, ...] = ()
    preset_reason: str = ""

    @classmethod
    def load(cls, path: Path) -> JobRequest:
        """Reads a ``spec.json``.

        Raises:
            OSError, ValueError: if it cannot be read, or is none.
        """
        return cls.model_validate_json(read_bytes(path, max_bytes=MAX_DOCUMENT_BYTES))

    @property
    def spec(self) -> TrainingSpec | EvaluationSpec | ExportSpec:
        """The specification of the job's kind."""
        spec = {
            JobKind.TRAINING: self.training,
            JobKind.EVALUATION: self.evaluation,
            JobKind.EXPORT: self.export,
        }[self.kind]
        if spec is None:
            raise ValueError(f"job {self.job_id} of kind {self.kind} has no {self.kind.lower()}")
        return spec
