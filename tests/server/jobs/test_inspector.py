"""Inspecting a dataset through the daemon, in a process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import LossRecord
from multigrain.images.limits import ImageLimits
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.resolve import resolve_training
from multigrain.v1.training_pb2 import InspectDatasetRequest, StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from multigrain_server.app import App
from multigrain_server.database import Database
from multigrain_server.jobs import inspector
from multigrain_server.jobs.inspector import Inspector
from multigrain_server.jobs.job import JobView
from multigrain_server.jobs.store import SCHEMA, JobStore
from tests.data.datasets import write_dataset

pytestmark = pytest.mark.process


async def test_a_dataset_is_inspected_and_planned(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    data = write_dataset(dataset.parent / "noise", classes=4, each=10, size=24)
    (data / "c0" / "broken.png").write_bytes(b"no image")
    (data / "c1" / "copy.png").write_bytes((data / "c1" / "000.png").read_bytes())
    stub = TrainingServiceStub(channel)
    spec = TrainingSpec(dataset=DatasetSpec(train_path=str(data)))
    found = await stub.InspectDataset(InspectDatasetRequest(spec=spec), timeout=60)
    # Of each class of ten or eleven, two are held out.
    assert (found.train.images, found.held_out.images) == (34, 8)
    assert found.train.class_images["c0"] + found.held_out.class_images["c0"] == 11
    assert found.train.checked + found.held_out.checked == 42
    assert found.train.unreadable + found.held_out.unreadable == 1
    assert (found.equal.compared, found.equal.across) == (42, 0)
    assert found.equal.train + found.equal.held_out == 1
    assert found.preset_reason == "photos-tiny: 42 images, CPU"
    assert found.spec.preset == "photos-tiny"
    assert found.plan.total_steps == 100 * (34 * 3 // 96)
    assert found.plan.basis == "by the cost of the network"
    assert found.plan.seconds > 0
    assert any("cannot be read" in warning for warning in found.warnings)
    would_be = await stub.StartTraining(StartTrainingRequest(spec=spec, validate_only=True))
    assert (would_be.job_id, would_be.training) == ("", found.spec)
    assert (would_be.name, would_be.preset_reason) == ("noise", found.preset_reason)
    assert not list(app.config.data_dir.glob("jobs/train-*"))


async def test_limits_that_are_none_are_refused(channel: grpc.aio.Channel, dataset: Path) -> None:
    stub = TrainingServiceStub(channel)
    spec = TrainingSpec(dataset=DatasetSpec(train_path=str(dataset)))
    for field, fields in (
        ("max_images", {"max_images": 100_001}),
        ("max_seconds", {"max_seconds": 601.0}),
        ("max_seconds", {"max_seconds": float("nan")}),
    ):
        request = InspectDatasetRequest(spec=spec, **fields)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.InspectDataset(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in str(caught.value.details())


def _inspector(store: JobStore | None = None) -> Inspector:
    store = store or JobStore(Database(":memory:", [SCHEMA]))
    return Inspector(store, ImageLimits(), "off")


async def test_an_error_of_the_process_is_the_callers(tmp_path: Path) -> None:
    spec = resolve_training(
        {"preset": "photos-small", "dataset": {"train_path": str(tmp_path / "gone")}}
    )
    with pytest.raises(MultigrainError, match="does not exist") as caught:
        await _inspector().run(spec, 10, 10.0)
    assert caught.value.kind is ErrorKind.DATASET


async def test_a_process_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def remember(*arguments: object, **options: object) -> asyncio.subprocess.Process:
        started.append(await create("sleep", "1000", **options))  # type: ignore[arg-type]
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remember)
    monkeypatch.setattr(inspector, "_OTHER_SECONDS", 0.1)
    spec = resolve_training({"preset": "photos-small", "dataset": {"train_path": str(tmp_path)}})
    with pytest.raises(MultigrainError, match="was not inspected within"):
        await _inspector().run(spec, 10, 0.1)
    assert await started[0].wait() != 0


async def test_the_rate_of_an_earlier_run_of_the_same_network_is_used(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", classes=2, each=20)
    dataset = {"train_path": str(data)}
    store = JobStore(Database(":memory:", [SCHEMA]))
    for number, (size, rate) in enumerate(((64, 50.0), (96, 20.0))):
        training = resolve_training(
            {"preset": "photos-small", "dataset": dataset, "model": {"image_size": size}}
        )
        request = JobRequest(
            job_id=f"train-{number}",
            kind=JobKind.TRAINING,
            request_id=str(number),
            create_time=f"2026-01-31T12:00:0{number}Z",
            training=training,
        )
        loss = LossRecord(10, 10, 1, 1, 1.0, 1.0, 1.0, 0.1, images_per_second=rate)
        store.insert(request, JobView(last_loss=loss), 0)
    spec = resolve_training(
        {"preset": "photos-small", "dataset": dataset, "evaluation": {"every_epochs": 0}}
    )
    plan = (await _inspector(store).run(spec, 10, 10.0)).plan
    assert plan is not None
    assert plan.basis == "measured in job train-0"
    assert plan.seconds == pytest.approx(plan.total_steps * 96 / 50)
