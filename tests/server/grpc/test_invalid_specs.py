"""Invalid evaluation and export specifications are refused with the right status and field."""

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
from multigrain.v1.job_pb2 import Job
from tests.data.benchmarks.files import touch
from tests.server.grpc.refusal import DENIED, INVALID, NOT_FOUND, refusal


@pytest.mark.parametrize(
    ("weights", "code", "words"),
    [
        (WeightsSource(), INVALID, "spec.weights"),
        (WeightsSource(job_id="train-1"), NOT_FOUND, "train-1"),
        (WeightsSource(model="unknown"), NOT_FOUND, "unknown"),
        (WeightsSource(checkpoint_path="/etc"), DENIED, "spec.weights.checkpoint_path"),
    ],
)
async def test_invalid_weights_are_refused(
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
async def test_invalid_evaluation_specs_are_refused(
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
async def test_invalid_export_specs_are_refused(
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


LAYOUTS = {
    "holidays": ["100000.jpg", "100001.jpg"],
    "ukb": [f"full/ukbench{number:05d}.jpg" for number in range(4)],
    "copydays": ["original/200000.jpg", "strong/200001.jpg", "distractors/a.jpg"],
    "groups": ["a/1.jpg", "a/2.jpg", "b/1.jpg"],
}


async def _start(channel: grpc.aio.Channel, root: Path, *tasks: str) -> Job:
    spec = EvaluationSpec(dataset_path=str(root), tasks=tasks, transform="rect")
    # Without a manifest, the classes are not checked at submission.
    spec.weights.checkpoint_path = str(root)
    return await EvaluationServiceStub(channel).StartEvaluation(StartEvaluationRequest(spec=spec))


@pytest.mark.parametrize("task", list(LAYOUTS))
async def test_a_benchmark_task_accepts_its_own_layout(
    channel: grpc.aio.Channel, tmp_path: Path, task: str
) -> None:
    root = touch(tmp_path / "images" / task, LAYOUTS[task])
    job = await _start(channel, root, task)
    assert (list(job.evaluation.tasks), job.evaluation.transform) == ([task], "rect")
    assert job.evaluation.group_queries == "all"


@pytest.mark.parametrize(
    ("task", "names", "words"),
    [
        ("holidays", ["cat/1.jpg"], "no images named as in INRIA Holidays (100000.jpg"),
        ("ukb", LAYOUTS["ukb"][:3], "the first missing one is ukbench00003"),
        ("copydays", LAYOUTS["copydays"][:1], "has no folder 'strong': Copydays needs"),
        ("groups", ["a/1.jpg", "b/1.jpg"], "put the images of each group into a sub-folder"),
        ("groups", ["1.jpg"], "has no class folders (1 images are directly in it)"),
    ],
)
async def test_another_layout_is_refused_with_a_hint(
    channel: grpc.aio.Channel, tmp_path: Path, task: str, names: list[str], words: str
) -> None:
    root = touch(tmp_path / "images" / "other", names)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _start(channel, root, task)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert "spec.dataset_path" in str(caught.value.details())
    assert words in str(caught.value.details())
