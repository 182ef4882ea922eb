"""Each wrong field of an evaluation or an export has the right status and a message."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1.common_pb2 import DeviceSpec
from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.evaluation_pb2_grpc import EvaluationServiceStub
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec, ExponentSpec, WeightsSource
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.export_pb2_grpc import ExportServiceStub
from multigrain.v1.export_spec_pb2 import ExportSpec, ResolutionSpec
from tests.server.grpc.refusal import DENIED, INVALID, NOT_FOUND, refusal


@pytest.mark.parametrize(
    ("weights", "code", "words"),
    [
        (WeightsSource(), INVALID, "spec.weights"),
        (WeightsSource(job_id="train-1"), NOT_FOUND, "train-1"),
        (WeightsSource(model="nobody"), NOT_FOUND, "nobody"),
        (WeightsSource(checkpoint_path="/etc"), DENIED, "spec.weights.checkpoint_path"),
    ],
)
async def test_wrong_weights_are_refused(
    channel: grpc.aio.Channel,
    dataset: Path,
    weights: WeightsSource,
    code: grpc.StatusCode,
    words: str,
) -> None:
    spec = EvaluationSpec(weights=weights, dataset_path=str(dataset))
    request = StartEvaluationRequest(spec=spec)
    error = await refusal(EvaluationServiceStub(channel).StartEvaluation(request))
    assert (error.code(), words in str(error.details())) == (code, True), error.details()
    if weights.WhichOneof("source") == "model":
        return  # a model is a bundle already and not a source of exports
    export = StartExportRequest(spec=ExportSpec(weights=weights, model_name="m"))
    error = await refusal(ExportServiceStub(channel).StartExport(export))
    assert (error.code(), words in str(error.details())) == (code, True), error.details()


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        (EvaluationSpec(batch_size=0), INVALID, "spec.batch_size"),
        (EvaluationSpec(tasks=["guess"]), INVALID, "spec.tasks"),
        (EvaluationSpec(resolution=1_000_000), INVALID, "spec.resolution"),
        (EvaluationSpec(tasks=["gem_p", "groups"]), INVALID, "run it as a separate job"),
        (
            EvaluationSpec(tasks=["gem_p"], exponent=ExponentSpec(candidates=[3, 0.5])),
            INVALID,
            "spec.exponent.candidates[1]",
        ),
        (EvaluationSpec(tasks=["gem_p"], gem_p=3), INVALID, "spec.gem_p"),
        (EvaluationSpec(whiten=True), INVALID, "spec.whiten: only models have a whitening"),
        (EvaluationSpec(tasks=["gem_p"], transform="rect"), INVALID, "spec.transform"),
        (
            EvaluationSpec(
                tasks=["gem_p"],
                exponent=ExponentSpec(method="finetune"),
                devices=DeviceSpec(count=2),
            ),
            INVALID,
            "spec.devices.count",
        ),
        (EvaluationSpec(dataset_path="/etc"), DENIED, "spec.dataset_path"),
    ],
)
async def test_a_wrong_evaluation_spec_is_refused(
    channel: grpc.aio.Channel,
    dataset: Path,
    spec: EvaluationSpec,
    code: grpc.StatusCode,
    words: str,
) -> None:
    spec.weights.checkpoint_path = str(dataset)
    if not spec.dataset_path:
        spec.dataset_path = str(dataset)
    call = EvaluationServiceStub(channel).StartEvaluation(StartEvaluationRequest(spec=spec))
    error = await refusal(call)
    assert (error.code(), words in str(error.details())) == (code, True), error.details()


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        (ExportSpec(model_name="../up"), INVALID, "spec.model_name"),
        (ExportSpec(model_name="m", formats=["pdf"]), INVALID, "spec.formats"),
        (ExportSpec(model_name="m", formats=["air"]), grpc.StatusCode.UNIMPLEMENTED, "Ascend"),
        (ExportSpec(model_name="m", whitening_path="/etc"), DENIED, "spec.whitening_path"),
        (ExportSpec(model_name="m", int8_path="/etc"), DENIED, "spec.int8_path"),
        (
            ExportSpec(model_name="m", resolution=32, resolutions=[ResolutionSpec(resolution=64)]),
            INVALID,
            "spec.resolutions",
        ),
        (
            ExportSpec(model_name="m", resolutions=[ResolutionSpec(gem_p=0.5)]),
            INVALID,
            "spec.resolutions[0].gem_p",
        ),
    ],
)
async def test_a_wrong_export_spec_is_refused(
    channel: grpc.aio.Channel,
    dataset: Path,
    spec: ExportSpec,
    code: grpc.StatusCode,
    words: str,
) -> None:
    spec.weights.checkpoint_path = str(dataset)
    call = ExportServiceStub(channel).StartExport(StartExportRequest(spec=spec))
    error = await refusal(call)
    assert (error.code(), words in str(error.details())) == (code, True), error.details()
