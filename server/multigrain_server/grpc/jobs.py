"""Training, evaluation, export and job services over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc.aio

from multigrain.errors import MultigrainError
from multigrain.jobs.job_request import JobKind
from multigrain.specs.request_fields import check_filter
from multigrain.v1 import (
    evaluation_pb2,
    evaluation_pb2_grpc,
    export_pb2,
    export_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from multigrain_server.access.client import origin
from multigrain_server.asyncio_utils import cooperative, to_thread_uncancellable
from multigrain_server.convert.events import (
    KIND_OF_ENUM,
    encode_batch,
    encode_events,
    heartbeat_message,
)
from multigrain_server.convert.jobs import (
    inspection_message,
    job_message,
    overrides,
    submission,
    would_be_message,
)
from multigrain_server.file_threads import read_files
from multigrain_server.jobs.artifacts import (
    Artifact,
    ArtifactKind,
    ArtifactReader,
    list_artifacts,
    open_artifact,
)
from multigrain_server.jobs.inspector import Inspector, inspection_limits
from multigrain_server.jobs.service import Jobs
from multigrain_server.jobs.store import JobFilter
from multigrain_server.jobs.submission import SubmissionChecks
from multigrain_server.metrics.jobs import EventMetrics
from multigrain_server.models.transfers import Transfers

_PLACE = "job files"

Context = grpc.aio.ServicerContext[Any, Any]


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Starts training jobs, and looks at datasets."""

    def __init__(self, jobs: Jobs, checks: SubmissionChecks, inspector: Inspector) -> None:
        self._jobs = jobs
        self._checks = checks
        self._inspector = inspector

    async def StartTraining(  # noqa: N802
        self,
        request: training_pb2.StartTrainingRequest,
        context: Context,
    ) -> job_pb2.Job:
        spec = overrides(request.spec)
        start = submission(request, JobKind.TRAINING, origin.get().client)
        if request.validate_only:
            return would_be_message(start, await self._checks.training(spec))
        return job_message(await self._jobs.submit(start, lambda: self._checks.training(spec)))

    async def InspectDataset(  # noqa: N802
        self, request: training_pb2.InspectDatasetRequest, context: Context
    ) -> training_pb2.InspectDatasetResponse:
        limits = inspection_limits(request.max_images, request.max_seconds)
        checked = await self._checks.training(overrides(request.spec))
        return inspection_message(checked, await self._inspector.run(checked.spec, *limits))


class EvaluationServicer(evaluation_pb2_grpc.EvaluationServiceServicer):
    """Starts evaluation jobs."""

    def __init__(self, jobs: Jobs, checks: SubmissionChecks) -> None:
        self._jobs = jobs
        self._checks = checks

    async def StartEvaluation(  # noqa: N802
        self,
        request: evaluation_pb2.StartEvaluationRequest,
        context: Context,
    ) -> job_pb2.Job:
        spec = overrides(request.spec)
        start = submission(request, JobKind.EVALUATION, origin.get().client)
        if request.validate_only:
            return would_be_message(start, await self._checks.evaluation(spec))
        return job_message(await self._jobs.submit(start, lambda: self._checks.evaluation(spec)))


class ExportServicer(export_pb2_grpc.ExportServiceServicer):
    """Starts export jobs."""

    def __init__(self, jobs: Jobs, checks: SubmissionChecks) -> None:
        self._jobs = jobs
        self._checks = checks

    async def StartExport(  # noqa: N802
        self, request: export_pb2.StartExportRequest, context: Context
    ) -> job_pb2.Job:
        spec = overrides(request.spec)
        start = submission(request, JobKind.EXPORT, origin.get().client)
        if request.validate_only:
            return would_be_message(start, await self._checks.export(spec))
        return job_message(await self._jobs.submit(start, lambda: self._checks.export(spec)))


class JobServicer(job_pb2_grpc.JobServiceServicer):
    """Gets, lists, streams, cancels, resumes and deletes jobs, and sends their files."""

    def __init__(self, jobs: Jobs, metrics: EventMetrics, transfers: Transfers) -> None:
        self._jobs = jobs
        self._metrics = metrics
        self._transfers = transfers

    async def GetJob(  # noqa: N802
        self, request: job_pb2.GetJobRequest, context: Context
    ) -> job_pb2.Job:
        return job_message(self._jobs.get(request.job_id))

    async def ListJobs(  # noqa: N802
        self, request: job_pb2.ListJobsRequest, context: Context
    ) -> job_pb2.ListJobsResponse:
        check_filter(request.name_contains, request.labels)
        which = JobFilter(
            states=_names("states", request.states, job_pb2.JobState, "JOB_STATE_"),
            kinds=_names("kinds", request.kinds, job_pb2.JobKind, "JOB_KIND_"),
            labels=tuple(sorted(request.labels.items())),
            name_contains=request.name_contains,
            id_prefix=request.id_prefix,
        )
        page = await self._jobs.list(which, request.page_size, request.page_token)
        response = job_pb2.ListJobsResponse(next_page_token=page.next_token)
        async for job in cooperative(page.jobs):
            response.jobs.append(job_message(job))
        return response

    async def CancelJob(  # noqa: N802
        self, request: job_pb2.CancelJobRequest, context: Context
    ) -> job_pb2.Job:
        return job_message(self._jobs.cancel(request.job_id))

    async def ResumeJob(  # noqa: N802
        self, request: job_pb2.ResumeJobRequest, context: Context
    ) -> job_pb2.Job:
        return job_message(await self._jobs.resume(request.job_id))

    async def DeleteJob(  # noqa: N802
        self, request: job_pb2.DeleteJobRequest, context: Context
    ) -> job_pb2.DeleteJobResponse:
        await self._jobs.delete(request.job_id)
        return job_pb2.DeleteJobResponse()

    async def StreamEvents(  # type: ignore[override]  # noqa: N802
        self, request: job_pb2.StreamEventsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        kinds = _names("kinds", request.kinds, job_pb2.EventKind, "EVENT_KIND_")
        chosen = frozenset(KIND_OF_ENUM[job_pb2.EventKind.Value(f"EVENT_KIND_{k}")] for k in kinds)
        feed = self._jobs.event_feed(request.job_id)
        stream = feed.batches(request.after_seq, chosen, request.follow)
        async with aclosing(stream) as batches:
            async for batch in batches:
                if batch.lines:
                    events = encode_events(batch.lines)
                else:
                    beat = heartbeat_message(request.job_id, feed.view.attempt, batch.last_seq)
                    events = [beat.SerializeToString()]
                if events:
                    self._metrics.streamed(len(events))
                    yield encode_batch(events)

    async def ListArtifacts(  # noqa: N802
        self, request: job_pb2.ListArtifactsRequest, context: Context
    ) -> job_pb2.ListArtifactsResponse:
        names = _names("kinds", request.kinds, job_pb2.ArtifactKind, "ARTIFACT_KIND_")
        kinds = [ArtifactKind(name) for name in names]
        folder = self._jobs.folder(request.job_id)
        found = await read_files(partial(list_artifacts, folder, kinds), place=_PLACE)
        response = job_pb2.ListArtifactsResponse()
        async for artifact in cooperative(found):
            response.artifacts.append(_artifact_message(artifact))
        return response

    async def GetArtifact(  # type: ignore[override]  # noqa: N802
        self, request: job_pb2.GetArtifactRequest, context: Context
    ) -> None:
        folder, transfers = self._jobs.folder(request.job_id), self._transfers
        with transfers.enter(origin.get().client):
            file = await to_thread_uncancellable(open_artifact, folder, request.name)
            with file:
                reader = ArtifactReader(file, request.name, request.offset)
                message = job_pb2.GetArtifactResponse(total_bytes=reader.size)
                async for chunk in reader.chunks():
                    message.chunk = chunk
                    await transfers.progress(context.write(message), "took no data")
                    message = job_pb2.GetArtifactResponse()
                message.sha256 = reader.sha256
                await transfers.progress(context.write(message), "took no data")


def _artifact_message(artifact: Artifact) -> job_pb2.Artifact:
    message = job_pb2.Artifact(
        name=artifact.name,
        kind=job_pb2.ArtifactKind.Value(f"ARTIFACT_KIND_{artifact.kind}"),
        bytes=artifact.size,
    )
    message.modify_time.FromNanoseconds(round(artifact.modified * 1e9))
    return message


def _names(field: str, values: Any, enum: Any, prefix: str) -> tuple[str, ...]:
    """Names of enum values without their prefix, each once.

    Raises:
        MultigrainError: INVALID_FIELD for UNSPECIFIED and for numbers that have no name.
    """
    names = []
    for at, value in enumerate(values):
        if value == 0 or value not in enum.values():
            known = ", ".join(enum.keys()[1:])
            raise MultigrainError.field(f"{field}[{at}]", f"{value} is not one of {known}")
        names.append(enum.Name(value).removeprefix(prefix))
    return tuple(dict.fromkeys(names))
