"""Models that jobs need, over gRPC."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.evaluation_pb2_grpc import EvaluationServiceStub
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec, WeightsSource
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.export_pb2_grpc import ExportServiceStub
from multigrain.v1.export_spec_pb2 import ExportSpec
from multigrain.v1.job_pb2 import CancelJobRequest, GetJobRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.model_pb2 import DeleteModelRequest
from multigrain.v1.model_pb2_grpc import ModelServiceStub
from multigrain_server.app import App
from multigrain_server.models.registry import ModelVersion
from tests.engine.bundles import write_bundle


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_model_that_an_evaluation_needs_is_not_deleted(
    app: App, channel: grpc.aio.Channel, dataset: Path, waiting: bool
) -> None:
    write_bundle(app.config.data_dir / "models", version=1)
    write_bundle(app.config.data_dir / "models", version=2)
    spec = EvaluationSpec(
        weights=WeightsSource(model="tiny@1"), dataset_path=str(dataset), tasks=["groups"]
    )
    labels = {"events": "100000", "pause": "0.02"}
    start = StartEvaluationRequest(spec=spec, labels=labels)
    evaluations, models = EvaluationServiceStub(channel), ModelServiceStub(channel)
    running = await evaluations.StartEvaluation(start)
    jobs = [running.job_id]
    if waiting:  # a second one, which waits for the first one's slot
        jobs.append((await evaluations.StartEvaluation(start)).job_id)
    for job_id in jobs:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await models.DeleteModel(DeleteModelRequest(model="tiny@1"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert f"job {job_id} reads it" in (caught.value.details() or "")
        stub = JobServiceStub(channel)
        await stub.CancelJob(CancelJobRequest(job_id=job_id))
        while job_id in app._supervisor.active:
            await stub.GetJob(GetJobRequest(job_id=job_id))
    await models.DeleteModel(DeleteModelRequest(model="tiny@1"))
    assert [path.name for path in (app.config.data_dir / "models" / "tiny").iterdir()] == ["2"]


async def test_an_export_cannot_have_the_name_of_an_alias(
    app: App, channel: grpc.aio.Channel
) -> None:
    app.models._state.set_alias("production", ModelVersion("tiny", 1))
    spec = ExportSpec(
        weights=WeightsSource(checkpoint_path=str(app.config.data_dir)), model_name="production"
    )
    with pytest.raises(grpc.aio.AioRpcError, match="production is an alias") as caught:
        await ExportServiceStub(channel).StartExport(StartExportRequest(spec=spec))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
