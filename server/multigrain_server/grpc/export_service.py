"""ExportService over the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio

from multigrain.jobs.request import JobKind
from multigrain.v1 import export_pb2, export_pb2_grpc, job_pb2
from multigrain_server.convert import spec as convert_spec
from multigrain_server.convert.job import job_message
from multigrain_server.convert.submission import submission
from multigrain_server.jobs.service import Jobs
from multigrain_server.jobs.submission import SubmissionChecks


class ExportServicer(export_pb2_grpc.ExportServiceServicer):
    """Starts export jobs."""

    def __init__(self, jobs: Jobs, checks: SubmissionChecks) -> None:
        self._jobs = jobs
        self._checks = checks

    async def StartExport(  # noqa: N802
        self, request: export_pb2.StartExportRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> job_pb2.Job:
        overrides = convert_spec.overrides(request.spec)
        asked = submission(request, JobKind.EXPORT)
        return job_message(await self._jobs.submit(asked, lambda: self._checks.export(overrides)))
