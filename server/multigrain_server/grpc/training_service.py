"""TrainingService over the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio

from multigrain.jobs.request import JobKind
from multigrain.v1 import job_pb2, training_pb2, training_pb2_grpc
from multigrain_server.convert import spec as convert_spec
from multigrain_server.convert.job import job_message
from multigrain_server.convert.submission import submission
from multigrain_server.jobs.service import Jobs
from multigrain_server.jobs.submission import SubmissionChecks


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Starts training jobs."""

    def __init__(self, jobs: Jobs, checks: SubmissionChecks) -> None:
        self._jobs = jobs
        self._checks = checks

    async def StartTraining(  # noqa: N802
        self,
        request: training_pb2.StartTrainingRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> job_pb2.Job:
        overrides = convert_spec.overrides(request.spec)
        asked = submission(request, JobKind.TRAINING)
        return job_message(await self._jobs.submit(asked, lambda: self._checks.training(overrides)))
