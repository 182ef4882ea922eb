"""Invalid requests are refused with the right status and a message that names the field."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from multigrain.v1.common_pb2 import DeviceSpec
from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.evaluation_pb2_grpc import EvaluationServiceStub
from multigrain.v1.evaluation_spec_pb2 import EvaluationSpec, WeightsSource
from multigrain.v1.job_pb2 import (
    CancelJobRequest,
    DeleteJobRequest,
    GetJobRequest,
    ListJobsRequest,
    ResumeJobRequest,
    StreamEventsRequest,
)
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, ModelSpec, ScheduleSpec, TrainingSpec
from tests.server.grpc.refusal import DENIED, INVALID, NOT_FOUND, refusal


def _spec(dataset: Path, **fields: Any) -> TrainingSpec:
    path = fields.pop("train_path", str(dataset))
    return TrainingSpec(
        preset=fields.pop("preset", "digits-demo"),
        dataset=DatasetSpec(train_path=path, val_path=fields.pop("val_path", "")),
        **fields,
    )


def _empty(dataset: Path) -> str:
    folder = dataset.parent / "empty"
    (folder / "cat").mkdir(parents=True)
    return str(folder)


TRAINING: list[tuple[str, Callable[[Path], dict[str, Any]], grpc.StatusCode, str]] = [
    ("preset", lambda d: {"preset": "digit-demo"}, INVALID, "digits-demo"),
    ("epochs", lambda d: {"schedule": ScheduleSpec(epochs=0)}, INVALID, "spec.schedule.epochs"),
    ("trunk", lambda d: {"model": ModelSpec(trunk="resnet5")}, INVALID, "spec.model.trunk"),
    (
        "gem_p is not a number",
        lambda d: {"model": ModelSpec(gem_p=float("nan"))},
        INVALID,
        "spec.model.gem_p",
    ),
    ("classes", lambda d: {"model": ModelSpec(classes=1)}, INVALID, "spec.model.classes"),
    ("outside", lambda d: {"train_path": "/etc"}, DENIED, "spec.dataset.train_path"),
    ("up", lambda d: {"train_path": f"{d}/../../../.."}, DENIED, "spec.dataset.train_path"),
    ("relative", lambda d: {"train_path": "images"}, INVALID, "spec.dataset.train_path"),
    ("missing", lambda d: {"train_path": f"{d}/none"}, INVALID, "spec.dataset.train_path"),
    ("none given", lambda d: {"train_path": ""}, INVALID, "spec.dataset.train_path"),
    ("no images", lambda d: {"train_path": _empty(d)}, INVALID, "spec.dataset.train_path"),
    ("weights", lambda d: {"initial_weights": "/etc/passwd"}, DENIED, "spec.initial_weights"),
    (
        "no gpu",
        lambda d: {"devices": DeviceSpec(target="gpu", count=1)},
        INVALID,
        "spec.devices.target",
    ),
    ("target", lambda d: {"devices": DeviceSpec(target="tpu")}, INVALID, "spec.devices.target"),
    ("count", lambda d: {"devices": DeviceSpec(count=0)}, INVALID, "spec.devices.count"),
    ("seed", lambda d: {"seed": 2**64 - 1}, INVALID, "spec.seed"),
]


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [case[1:] for case in TRAINING],
    ids=[case[0] for case in TRAINING],
)
async def test_invalid_training_specs_are_refused(
    channel: grpc.aio.Channel,
    dataset: Path,
    make: Callable[[Path], dict[str, Any]],
    code: grpc.StatusCode,
    words: str,
) -> None:
    request = StartTrainingRequest(spec=_spec(dataset, **make(dataset)))
    error = await refusal(TrainingServiceStub(channel).StartTraining(request))
    assert (error.code(), words in str(error.details())) == (code, True), error.details()


def _fill(message: Message) -> None:
    """Sets every field to a value that is invalid for most of them."""
    wrong = {FieldDescriptor.TYPE_STRING: "\u00e9" * 100_000, FieldDescriptor.TYPE_BOOL: True}
    wrong[FieldDescriptor.TYPE_DOUBLE] = -1.0
    for field in message.DESCRIPTOR.fields:
        if field.message_type:
            _fill(getattr(message, field.name))
        elif not field.is_repeated:
            setattr(message, field.name, wrong.get(field.type, 4_000_000_000))


async def test_a_spec_with_every_field_invalid_is_refused_with_its_status(
    channel: grpc.aio.Channel,
) -> None:
    spec = TrainingSpec()
    _fill(spec)
    error = await refusal(
        TrainingServiceStub(channel).StartTraining(StartTrainingRequest(spec=spec))
    )
    assert (error.code(), "spec.preset" in str(error.details())) == (INVALID, True)


@pytest.mark.parametrize("name", ["\u00e9" * 1300, "x" * 1_000_000])
async def test_a_long_unknown_name_is_refused_with_its_status(
    channel: grpc.aio.Channel, dataset: Path, name: str
) -> None:
    source = WeightsSource(job_id=name)
    request = StartEvaluationRequest(spec=EvaluationSpec(weights=source, dataset_path=str(dataset)))
    error = await refusal(EvaluationServiceStub(channel).StartEvaluation(request))
    assert (error.code(), "spec.weights" in str(error.details())) == (NOT_FOUND, True)
    path = "/".join([str(dataset), *["\u00e9" * 100] * 15])
    spec = _spec(dataset, train_path=path)
    error = await refusal(
        TrainingServiceStub(channel).StartTraining(StartTrainingRequest(spec=spec))
    )
    assert (error.code(), "no such file" in str(error.details())) == (INVALID, True)


async def test_an_unknown_validation_class_is_refused(
    channel: grpc.aio.Channel, dataset: Path
) -> None:
    val = dataset.parent / "val" / "horse"
    val.mkdir(parents=True)
    (val / "0.png").write_bytes((dataset / "cat" / "0.png").read_bytes())
    request = StartTrainingRequest(spec=_spec(dataset, val_path=str(val.parent)))
    error = await refusal(TrainingServiceStub(channel).StartTraining(request))
    assert error.code() is INVALID
    assert "spec.dataset.val_path" in str(error.details())
    assert "horse" in str(error.details())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"request_id": "x" * 129}, "request_id"),
        ({"name": "x" * 129}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {str(i): "" for i in range(65)}}, "labels"),
    ],
)
async def test_invalid_request_fields_are_refused(
    channel: grpc.aio.Channel, dataset: Path, fields: dict[str, Any], words: str
) -> None:
    request = StartTrainingRequest(spec=_spec(dataset), **fields)
    error = await refusal(TrainingServiceStub(channel).StartTraining(request))
    assert (error.code(), words in str(error.details())) == (INVALID, True)


@pytest.mark.parametrize(
    ("job_id", "code"),
    [
        ("", INVALID),
        ("../../etc", INVALID),
        ("A\x00", INVALID),
        ("x" * 65, INVALID),
        ("train-20260101-000000-abcdef", NOT_FOUND),
    ],
)
async def test_invalid_job_ids_are_refused_by_every_call(
    channel: grpc.aio.Channel, job_id: str, code: grpc.StatusCode
) -> None:
    stub = JobServiceStub(channel)

    async def stream() -> None:
        async for _ in stub.StreamEvents(StreamEventsRequest(job_id=job_id)):
            pass

    for call in (
        stub.GetJob(GetJobRequest(job_id=job_id)),
        stub.CancelJob(CancelJobRequest(job_id=job_id)),
        stub.ResumeJob(ResumeJobRequest(job_id=job_id)),
        stub.DeleteJob(DeleteJobRequest(job_id=job_id)),
        stream(),
    ):
        error = await refusal(call)
        assert error.code() is code


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ListJobsRequest(page_size=1001), "page_size"),
        (ListJobsRequest(page_token="nonsense"), "page_token"),
        (ListJobsRequest(page_token="\x7f" * 9), "page_token"),
        (ListJobsRequest(page_token="W10"), "page_token"),
        (ListJobsRequest(states=[99]), "states[0]"),  # type: ignore[list-item]
        (ListJobsRequest(kinds=[1, 0]), "kinds[1]"),  # type: ignore[list-item]
        (ListJobsRequest(page_token=base64.b64encode(b"[" * 100_000).decode()), "page_token"),
        (ListJobsRequest(labels={str(i): "" for i in range(2000)}), "labels"),
        (ListJobsRequest(name_contains="x" * 129), "name_contains"),
    ],
)
async def test_invalid_listings_are_refused(
    channel: grpc.aio.Channel, request_: ListJobsRequest, words: str
) -> None:
    error = await refusal(JobServiceStub(channel).ListJobs(request_))
    assert (error.code(), words in str(error.details())) == (INVALID, True), error.details()
