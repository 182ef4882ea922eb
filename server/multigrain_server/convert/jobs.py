"""Start requests, specifications and jobs as messages of the contract.

The specification messages of ``multigrain.v1`` and the classes of ``multigrain.specs`` have the
same fields under the same names (a test compares them), so that they are converted by walking
over the descriptors.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from multigrain.data.inspection_report import InspectionResult
from multigrain.jobs.job_request import JobKind
from multigrain.specs.base import Spec
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.request_fields import MAX_NAME, check_request
from multigrain.specs.training import TrainingSpec
from multigrain.text import printable
from multigrain.v1 import (
    evaluation_spec_pb2,
    export_spec_pb2,
    job_pb2,
    training_pb2,
    training_spec_pb2,
)
from multigrain.v1.common_pb2 import Error
from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain_server.convert.events import message_from_fields, timestamp
from multigrain_server.jobs.job import Job
from multigrain_server.jobs.submission import CheckedSpec, Submission

_M = TypeVar("_M", bound=Message)

StartRequest = StartTrainingRequest | StartEvaluationRequest | StartExportRequest


def submission(request: StartRequest, kind: JobKind, client: str) -> Submission:
    """The parts that all Start requests share, and the hash of the whole request.

    Args:
        request: of any kind.
        kind: of the job.
        client: who sent it.

    Raises:
        MultigrainError: INVALID_FIELD with every violation.
    """
    labels = dict(request.labels)
    check_request(request.request_id, request.name, labels)
    name = request.name
    if not name and isinstance(request, StartTrainingRequest):
        name = request.spec.preset or Path(request.spec.dataset.train_path).name
        name = printable(name)[:MAX_NAME]
    body = kind.value.encode() + b"\0" + request.SerializeToString(deterministic=True)
    digest = hashlib.sha256(body).hexdigest()
    return Submission(kind, digest, request.request_id, name, labels, client)


def overrides(message: Message) -> dict[str, Any]:
    """The fields that a request sets, as the nested dict that ``multigrain.specs.resolve`` takes.

    Includes fields that are set to 0, false or "". An empty list is left out, because protobuf
    does not distinguish it from an unset one.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            if value:
                values[field.name] = [
                    overrides(item) if field.message_type else item for item in value
                ]
        elif message.HasField(field.name):
            values[field.name] = overrides(value) if field.message_type else value
    return values


def training_message(spec: TrainingSpec) -> training_spec_pb2.TrainingSpec:
    """The resolved specification with every field set."""
    return _filled(training_spec_pb2.TrainingSpec(), spec)


def evaluation_message(spec: EvaluationSpec) -> evaluation_spec_pb2.EvaluationSpec:
    """The resolved specification with every field set (of the weights, the one source)."""
    return _filled(evaluation_spec_pb2.EvaluationSpec(), spec)


def export_message(spec: ExportSpec) -> export_spec_pb2.ExportSpec:
    """The resolved specification with every field set (of the weights, the one source)."""
    return _filled(export_spec_pb2.ExportSpec(), spec)


def _filled(message: _M, spec: Spec) -> _M:
    for field in message.DESCRIPTOR.fields:
        value = getattr(spec, field.name)
        if field.is_repeated and field.message_type:
            for item in value:
                _filled(getattr(message, field.name).add(), item)
        elif field.is_repeated:
            getattr(message, field.name).extend(value)
        elif field.message_type:
            # Marks the group as set, even if all its values are defaults.
            getattr(message, field.name).SetInParent()
            _filled(getattr(message, field.name), value)
        else:
            # In descriptors, an `optional` field is the only member of a oneof.
            oneof = field.containing_oneof
            if value or oneof is None or len(oneof.fields) == 1:
                setattr(message, field.name, value)
    return message


def job_message(job: Job) -> job_pb2.Job:
    """Everything the daemon knows of a job, with its resolved specification."""
    request, view = job.request, job.view
    message = job_pb2.Job(
        job_id=request.job_id,
        kind=job_pb2.JobKind.Value(f"JOB_KIND_{request.kind}"),
        name=request.name,
        labels=request.labels,
        state=job_pb2.JobState.Value(f"JOB_STATE_{job.state}"),
        state_message=job.state_message,
        attempt=view.attempt,
        create_time=timestamp(request.create_time),
        start_time=timestamp(view.start_time),
        end_time=timestamp(view.end_time),
        exit_code=view.exit_code,
        progress=job_pb2.Progress(**asdict(view.progress)),
        metrics=view.metrics,
        last_seq=view.last_seq,
        request_id=request.request_id,
        warnings=request.warnings,
        preset_reason=request.preset_reason,
    )
    parts: tuple[tuple[str, type[Message]], ...] = (
        ("error", Error),
        ("last_checkpoint", job_pb2.CheckpointEvent),
        ("best_checkpoint", job_pb2.CheckpointEvent),
        ("last_loss", job_pb2.LossEvent),
        ("artifact", job_pb2.ArtifactEvent),
    )
    for name, cls in parts:
        record = getattr(view, name)
        if record is not None:
            getattr(message, name).CopyFrom(message_from_fields(cls, asdict(record)))
    _set_spec(message, request.spec)
    return message


def would_be_message(submitted: Submission, checked: CheckedSpec) -> job_pb2.Job:
    """A job that has only been validated: it has no id and no state."""
    message = job_pb2.Job(
        kind=job_pb2.JobKind.Value(f"JOB_KIND_{checked.kind}"),
        name=submitted.name,
        labels=submitted.labels,
        request_id=submitted.request_id,
        warnings=checked.warnings,
        preset_reason=checked.preset_reason,
    )
    _set_spec(message, checked.spec)
    return message


def inspection_message(
    checked: CheckedSpec, result: InspectionResult
) -> training_pb2.InspectDatasetResponse:
    """What was found in a dataset, beside the specification that would be run."""
    message = training_pb2.InspectDatasetResponse(preset_reason=checked.preset_reason)
    if isinstance(checked.spec, TrainingSpec):
        message.spec.CopyFrom(training_message(checked.spec))
    message.warnings.extend(dict.fromkeys((*checked.warnings, *result.warnings)))
    found = result.inspection
    if found is not None:
        message.seconds = found.seconds
        for name, cls in (
            ("train", training_pb2.FolderReport),
            ("held_out", training_pb2.FolderReport),
            ("equal", training_pb2.PairReport),
            ("near", training_pb2.PairReport),
        ):
            if (part := getattr(found, name)) is not None:
                getattr(message, name).CopyFrom(message_from_fields(cls, asdict(part)))
    if result.plan is not None:
        fields = asdict(result.plan)
        message.plan.CopyFrom(message_from_fields(training_pb2.TrainingPlan, fields))
    return message


def _set_spec(message: job_pb2.Job, spec: TrainingSpec | EvaluationSpec | ExportSpec) -> None:
    if isinstance(spec, TrainingSpec):
        message.training.CopyFrom(training_message(spec))
    elif isinstance(spec, EvaluationSpec):
        message.evaluation.CopyFrom(evaluation_message(spec))
    elif isinstance(spec, ExportSpec):
        message.export.CopyFrom(export_message(spec))
