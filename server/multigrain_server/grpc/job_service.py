"""JobService over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio

from multigrain.errors import MultigrainError
from multigrain.spec.request import check_filter
from multigrain.v1 import job_pb2, job_pb2_grpc
from multigrain_server.convert.encoded import joined
from multigrain_server.convert.event import KIND_OF_ENUM
from multigrain_server.convert.job import job_message
from multigrain_server.jobs.service import Jobs
from multigrain_server.jobs.store import JobFilter
from multigrain_server.metrics.jobs import EventMetrics
from multigrain_server.turns import in_turns

_EVENTS = job_pb2.JobEventBatch.EVENTS_FIELD_NUMBER

Context = grpc.aio.ServicerContext[Any, Any]


class JobServicer(job_pb2_grpc.JobServiceServicer):
    """Watches and steers jobs."""

    def __init__(self, jobs: Jobs, metrics: EventMetrics) -> None:
        self._jobs = jobs
        self._metrics = metrics

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
        )
        page = await self._jobs.list(which, request.page_size, request.page_token)
        return job_pb2.ListJobsResponse(
            jobs=[job_message(job) async for job in in_turns(page.jobs)],
            next_page_token=page.next_token,
        )

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
        stream = self._jobs.event_batches(request.job_id, request.after_seq, chosen, request.follow)
        async with aclosing(stream) as batches:
            async for batch in batches:
                self._metrics.streamed(len(batch))
                yield joined(_EVENTS, batch)


def _names(field: str, values: Any, enum: Any, prefix: str) -> tuple[str, ...]:
    """Names of enum values without their prefix, each once.

    Raises:
        MultigrainError: INVALID_FIELD for UNSPECIFIED and for numbers that have no name.
    """
    names = []
    for at, value in enumerate(values):
        if value == 0 or value not in enum.values():
            known = ", ".join(name for name in enum.keys()[1:])
            raise MultigrainError.field(f"{field}[{at}]", f"{value} is none of {known}")
        names.append(enum.Name(value).removeprefix(prefix))
    return tuple(dict.fromkeys(names))
