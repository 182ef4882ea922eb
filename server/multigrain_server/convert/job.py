"""A job as a message of the contract."""

from __future__ import annotations

from dataclasses import asdict

from multigrain.spec.evaluation import EvaluationSpec
from multigrain.spec.export import ExportSpec
from multigrain.spec.training import TrainingSpec
from multigrain.v1 import job_pb2
from multigrain_server.convert import spec as convert_spec
from multigrain_server.convert.event import artifact_message, error_message, timestamp
from multigrain_server.jobs.job import Job


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
    )
    if view.error is not None:
        message.error.CopyFrom(error_message(asdict(view.error)))
    if view.last_checkpoint is not None:
        message.last_checkpoint.CopyFrom(job_pb2.CheckpointEvent(**asdict(view.last_checkpoint)))
    if view.best_checkpoint is not None:
        message.best_checkpoint.CopyFrom(job_pb2.CheckpointEvent(**asdict(view.best_checkpoint)))
    if view.last_loss is not None:
        message.last_loss.CopyFrom(job_pb2.LossEvent(**asdict(view.last_loss)))
    if view.artifact is not None:
        message.artifact.CopyFrom(artifact_message(asdict(view.artifact)))
    spec = request.spec
    if isinstance(spec, TrainingSpec):
        message.training.CopyFrom(convert_spec.training_message(spec))
    elif isinstance(spec, EvaluationSpec):
        message.evaluation.CopyFrom(convert_spec.evaluation_message(spec))
    elif isinstance(spec, ExportSpec):
        message.export.CopyFrom(convert_spec.export_message(spec))
    return message
