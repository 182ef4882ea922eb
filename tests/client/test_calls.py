"""Calls for jobs and models, and their retries."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from multigrain.v1 import job_pb2, model_pb2
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from multigrain_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    HealthStatus,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
    methods,
)
from tests.client.events import job_of
from tests.client.faults import Fault
from tests.client.specs import AMBIGUOUS_SPECS
from tests.contract import calls

FULL = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", "OVERLOADED", 0.005)


def test_preset_and_dotted_overrides_are_merged_into_one_spec(client, state):
    job = client.start_training(
        preset="digits-demo",
        name="try",
        labels={"team": "search"},
        seed=7,
        **{"schedule.epochs": 3, "optimizer.thor.frequency": 20},
    )
    spec = job.training
    assert (spec.preset, spec.seed) == ("digits-demo", 7)
    assert (spec.schedule.epochs, spec.optimizer.thor.frequency) == (3, 20)
    assert not spec.schedule.HasField("batch_size")
    assert (job.name, dict(job.labels)) == ("try", {"team": "search"})


def test_a_spec_may_be_a_dict_a_message_or_a_yaml_file(client, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(
        "preset: digits-demo\noptimizer:\n  weight_decay: 5e-4\nmodel:\n  gem_p: .inf\n"
    )
    as_dict = {"preset": "digits-demo", "optimizer": {"weight_decay": 5e-4}, "model.gem_p": "inf"}
    message = TrainingSpec(preset="digits-demo")
    message.optimizer.weight_decay = 5e-4
    message.model.gem_p = float("inf")

    specs = [client.start_training(spec).training for spec in (str(file), as_dict, message)]

    assert specs[0] == specs[1] == specs[2] == message


def test_relative_paths_start_in_the_current_directory(client, tmp_path, monkeypatch):
    """As on the command line."""
    monkeypatch.chdir(tmp_path)
    for dataset in ("photos", Path("photos"), {"train_path": "photos"}):
        assert client.start_training(dataset=dataset).training.dataset.train_path == str(
            tmp_path / "photos"
        )
    typed = DatasetSpec(train_path="photos", val_fraction=0.1)
    made = client.start_training(dataset=typed, initial_weights="../w.safetensors").training
    assert made.dataset.train_path == str(tmp_path / "photos")
    assert made.dataset.val_fraction == 0.1
    assert made.initial_weights == str(tmp_path.parent / "w.safetensors")
    assert client.start_training(TrainingSpec(dataset=typed)).training.dataset == made.dataset
    evaluated = client.evaluate(checkpoint_path="a.ckpt", dataset_path=Path("val")).evaluation
    assert evaluated.weights.checkpoint_path == str(tmp_path / "a.ckpt")
    assert evaluated.dataset_path == str(tmp_path / "val")
    for name in ("job:train-1@best", "model:birds@2", "timm:resnet50", "torchvision:resnet18"):
        assert client.start_training(initial_weights=name).training.initial_weights == name
        source = client.evaluate(checkpoint_path=name).evaluation.weights
        assert source.checkpoint_path == name


def test_a_dataset_is_inspected_with_the_fields_of_a_training_run(client, state):
    found = client.inspect_dataset(dataset="/photos", max_images=7, **{"schedule.epochs": 2})
    assert found.train.images == 30
    (request,) = state.requests
    assert (request.max_images, request.spec.schedule.epochs) == (7, 2)
    job = client.start_training(dataset="/photos", validate_only=True)
    assert (job.job_id, job.training.dataset.train_path) == ("", "/photos")
    assert not state.jobs


@pytest.mark.parametrize(("text", "problem"), AMBIGUOUS_SPECS)
def test_ambiguous_spec_file_is_refused_before_any_call(client, state, tmp_path, text, problem):
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as info:
        client.start_training(str(file))
    assert problem in str(info.value)
    assert not state.calls


@pytest.mark.parametrize("spec", [3, ["digits-demo"], True])
def test_spec_of_another_type_is_refused_before_any_call(client, state, spec):
    with pytest.raises(InvalidRequest, match=f"YAML file, not {type(spec).__name__}"):
        client.start_training(spec)
    assert not state.calls


def test_override_replaces_fields_and_lists_of_the_spec(client):
    message = TrainingSpec()
    message.schedule.learning_rate.milestones.extend([1, 2])
    for spec in (message, {"schedule": {"learning_rate": {"milestones": [1, 2]}}}):
        job = client.start_training(spec, **{"schedule.learning_rate.milestones": [9]})
        assert list(job.training.schedule.learning_rate.milestones) == [9]


def test_unknown_key_or_wrong_type_is_named_with_its_path_before_any_call(client, state):
    with pytest.raises(InvalidRequest) as info:
        client.start_training({"schedule": {"epoch": 3}, "seed": "x", "model": 5})
    assert "spec.schedule.epoch: no such field; did you mean 'epochs'?" in str(info.value)
    fields = [violation.field for violation in info.value.violations]
    assert fields == ["spec.schedule.epoch", "spec.seed", "spec.model"]
    assert info.value.code is None
    assert not state.calls


def test_every_start_has_its_own_request_id(client, state):
    for _ in range(2):
        client.start_training(preset="digits-demo")
    ids = [request.request_id for request in state.requests]
    assert len({uuid.UUID(one) for one in ids}) == 2


def test_start_is_retried_with_the_same_request_id(client, state):
    state.faults["StartTraining"].extend([Fault(), Fault()])
    client.start_training(preset="digits-demo")
    assert len({request.request_id for request in state.requests}) == 1
    assert state.calls["StartTraining"] == 3
    assert len(state.jobs) == 1


def test_start_without_a_request_id_is_not_retried(client, state):
    state.faults["StartTraining"].append(Fault())
    with pytest.raises(Unavailable):
        client.StartTraining(name="raw")
    assert state.calls["StartTraining"] == 1


@pytest.mark.parametrize(
    ("method", "arguments", "repeated"),
    [
        ("job", ("job-1",), True),
        ("cancel", ("job-1",), True),
        ("resume", ("job-1",), False),
        ("delete_job", ("job-1",), False),
        ("load_model", ("fake@1",), True),
        ("delete_model", ("fake@1",), False),
        ("unload_model", ("fake@1",), False),
    ],
)
def test_only_idempotent_calls_are_retried_when_the_server_is_unreachable(
    client, state, method, arguments, repeated
):
    state.jobs["job-1"] = job_of("job-1")
    state.models["fake@1"] = model_pb2.Model(name="fake", version=1)
    rpc = {
        "job": "GetJob",
        "cancel": "CancelJob",
        "resume": "ResumeJob",
        "delete_job": "DeleteJob",
        "load_model": "LoadModel",
        "delete_model": "DeleteModel",
        "unload_model": "UnloadModel",
    }[method]
    state.faults[rpc].append(Fault())
    if repeated:
        getattr(client, method)(*arguments)
        assert state.calls[rpc] == 2
    else:
        with pytest.raises(Unavailable):
            getattr(client, method)(*arguments)
        assert state.calls[rpc] == 1


def test_refusal_with_a_delay_is_retried_for_every_call(client, state):
    state.jobs["job-1"] = job_of("job-1")
    state.faults["ResumeJob"].extend([FULL, FULL])
    client.resume("job-1")
    assert state.calls["ResumeJob"] == 3


def test_resource_exhausted_without_a_delay_is_not_retried(client, state):
    state.faults["GetJob"].append(Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large"))
    with pytest.raises(Overloaded, match="message too large"):
        client.job("job-1")
    assert state.calls["GetJob"] == 1


def test_load_that_failed_on_the_server_is_not_retried(client, state):
    state.faults["LoadModel"].append(
        Fault(grpc.StatusCode.UNAVAILABLE, "digits@1 did not load within 300 s", "UNAVAILABLE")
    )
    with pytest.raises(Unavailable, match="did not load"):
        client.load_model("digits")
    assert state.calls["LoadModel"] == 1


def test_load_that_reached_no_server_is_retried(client, state):
    state.models["digits"] = model_pb2.Model(name="digits", version=1)
    state.faults["LoadModel"].append(Fault(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    client.load_model("digits")
    assert state.calls["LoadModel"] == 2


def test_delay_beyond_the_deadline_is_not_waited_for(client, state):
    state.faults["GetJob"].append(
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OVERLOADED", retry_after=60)
    )
    with pytest.raises(Overloaded) as info:
        client.job("job-1", timeout=2)
    assert info.value.retry_after == 60
    assert state.calls["GetJob"] == 1


def test_number_of_attempts_is_limited(client, state):
    state.faults["GetJob"].extend([Fault()] * 100)
    with pytest.raises(Unavailable, match=r"cannot reach the server at 127\.0\.0\.1"):
        client.job("job-1")
    assert state.calls["GetJob"] == 5


def test_timeout_covers_all_attempts(client, state):
    state.delay = 1.0
    with pytest.raises(DeadlineExceeded, match="GetJob: deadline exceeded before"):
        client.job("job-1", timeout=0.2)


def test_jobs_fetches_pages_and_filters(client, state):
    for number in range(5):
        ended = job_pb2.JOB_STATE_FAILED if number % 2 else job_pb2.JOB_STATE_RUNNING
        state.jobs[f"job-{number}"] = job_of(f"job-{number}", state=ended)
    assert [job.job_id for job in client.jobs()] == [f"job-{n}" for n in range(5)]
    assert state.calls["ListJobs"] == 3
    assert [job.job_id for job in client.jobs(states=["failed"])] == ["job-1", "job-3"]
    with pytest.raises(InvalidRequest, match="each one of queued, starting"):
        list(client.jobs(states=["lost"]))


def test_weights_of_evaluate_and_export(client):
    evaluation = client.evaluate(
        job="job-1", checkpoint="best", dataset_path="/data/val"
    ).evaluation
    assert evaluation.weights.job_id == "job-1"
    assert evaluation.weights.checkpoint == "best"
    assert evaluation.dataset_path == "/data/val"
    export = client.export(job=job_of("job-1"), model_name="digits", formats=["onnx"]).export
    assert (export.weights.job_id, export.model_name) == ("job-1", "digits")
    assert list(export.formats) == ["onnx"]
    with pytest.raises(InvalidRequest, match="one source of weights"):
        client.evaluate(job="job-1", model="digits")


def test_rpcs_can_be_called_by_name(client, state):
    request = StartTrainingRequest(name="raw", spec=TrainingSpec(preset="digits-demo"))
    job = client.StartTraining(request)
    assert client.GetJob(job_id=job.job_id).name == "raw"
    again = client.StartTraining(name="words", spec={"preset": "x", "schedule": {"epochs": 2}})
    assert again.training.schedule.epochs == 2
    listed = client.ListJobs(states=["RUNNING"], page_size=1)
    assert (len(listed.jobs), listed.next_page_token) == (1, "1")
    with pytest.raises(InvalidRequest, match="job_idd: no such field; did you mean 'job_id'"):
        client.GetJob(job_idd="x")
    with pytest.raises(InvalidRequest, match="not both"):
        client.StartTraining(request, name="x")


def test_token_is_sent_with_every_call(make_client, server, state):
    client = make_client(server.address, token="secret")
    state.jobs["job-1"] = job_of("job-1")
    client.job("job-1")
    assert state.metadata["authorization"] == "Bearer secret"


def test_calls_are_balanced_over_several_addresses(make_client, server):
    from tests.client.fake_server import FakeServer

    other = FakeServer()
    try:
        for one in (server, other):
            one.state.jobs["job-1"] = job_of("job-1")
        client = make_client(f"localhost:{server.port},127.0.0.1:{other.port}")
        for _ in range(20):
            client.job("job-1")
        assert server.state.calls["GetJob"] >= 5
        assert other.state.calls["GetJob"] >= 5
    finally:
        other.stop()


def test_unreachable_server_is_named(make_client):
    client = make_client("127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"cannot reach the server at 127\.0\.0\.1:1"):
        client.job("job-1")


def test_health_of_the_server_and_of_a_service(client):
    assert client.health().serving
    assert client.health("multigrain.v1.EmbeddingService") is HealthStatus.NOT_SERVING
    with pytest.raises(NotFound):
        client.health("multigrain.v1.NoService")


def test_retry_waits_for_the_delay_of_the_server(client, state):
    state.jobs["job-1"] = job_of("job-1")
    state.faults["GetJob"].append(
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "OVERLOADED", retry_after=0.3)
    )
    began = time.monotonic()
    client.job("job-1")
    assert time.monotonic() - began >= 0.3


def test_model_calls_have_a_longer_default_timeout(client, state):
    remaining = {}
    begin = state.begin

    def look(name, request, context):
        remaining[name] = context.time_remaining()
        return begin(name, request, context)

    state.begin = look
    state.models["digits"] = model_pb2.Model(name="digits", version=1)
    state.jobs["job-1"] = job_of("job-1")
    client.load_model("digits")
    client.unload_model("digits")
    client.job("job-1")
    assert remaining["GetJob"] < 20.0  # the client's default is 10
    assert min(remaining["LoadModel"], remaining["UnloadModel"]) > 800.0


def test_response_above_the_default_message_limit_of_grpc(client, state):
    state.jobs["job-1"] = job_of("job-1")
    state.jobs["job-1"].name = "x" * 5_000_000
    assert len(client.job("job-1").name) == 5_000_000


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_both_clients_have_every_rpc_under_its_name(kind: Any) -> None:
    client = kind("127.0.0.1:1")
    for path, rpc in calls().items():
        found: methods.Method[Any, Any] = getattr(client, rpc.name).method
        assert found.path == path
        assert found.request.DESCRIPTOR is rpc.input_type
        assert found.response.DESCRIPTOR is rpc.output_type
        shape = {
            (False, False): "Unary",
            (False, True): "Stream",
            (True, False): "Upload",
            (True, True): "Exchange",
        }[rpc.client_streaming, rpc.server_streaming]
        assert type(getattr(client, rpc.name)).__name__ == shape
