"""A job in TensorBoard's files, in MLflow, and in the calls that W&B gets."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from multigrain.v1 import job_pb2
from multigrain_client import MissingPackage
from multigrain_client.sync.client import Client
from multigrain_client.tracking import MLflow, TensorBoard, WandB, follow
from tests.client.events import job_of


@pytest.fixture
def job(state):
    """Three steps, an evaluation after each, and a loss that is not finite."""
    job = state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    job.name, job.training.schedule.epochs = "a run", 3
    job.labels["team"] = "search"
    events = []
    for step in (1, 2, 3):
        for body in (
            {"loss": {"step": step, "loss": 1 / step if step < 3 else math.nan,
                      "learning_rate": 0.1}},
            {"evaluation": {"step": step, "epoch": step, "metrics": {"top1": 0.25 * step}}},
        ):  # fmt: skip
            event = job_pb2.JobEvent(seq=len(events) + 1, job_id="job-1", attempt=1, **body)
            event.time.FromSeconds(1_700_000_000 + step)
            events.append(event)
    state.events["job-1"] = events
    return job


@pytest.fixture
def blocking(server):
    with Client(server.address) as client:
        yield client


def test_tensorboard_reads_the_values_back(run, job, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, out, _ = run("track", "job-1", "--to", "tensorboard", "--dir", str(tmp_path))
    assert (code, out) == (0, "job-1  SUCCEEDED, 6 points sent to tensorboard\n")
    found = EventAccumulator(str(tmp_path / "job-1")).Reload()
    top1 = [(e.step, e.value, e.wall_time) for e in found.Scalars("val/top1")]
    assert top1 == [(n, pytest.approx(0.25 * n), 1_700_000_000 + n) for n in (1, 2, 3)]
    losses = [(e.step, e.value) for e in found.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 0.5)]
    assert len(found.Scalars("train/learning_rate")) == 3
    (text,) = found.Tensors("settings/text_summary")
    assert b"| schedule.epochs | 3 |" in text.tensor_proto.string_val[0]


def test_mlflow_has_the_run_its_settings_and_its_values(blocking, job, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    follow(blocking, job, MLflow(uri, "birds"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("birds")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "a run"
    assert found.data.tags["multigrain.job_id"] == "job-1"
    assert found.data.tags["team"] == "search"
    assert found.data.params["schedule.epochs"] == "3"
    history = client.get_metric_history(found.info.run_id, "val/top1")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 2


def test_wandb_gets_the_calls_of_its_documentation(blocking, job, monkeypatch):
    """A stand-in for wandb: it needs an account, or writes files of a private format."""
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(
        define_metric=lambda *names, **more: calls.append(("define_metric", (names, more))),
        log=lambda values: calls.append(("log", values)),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )

    def init(**options: Any) -> Any:
        calls.append(("init", options))
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    follow(blocking, job, WandB("birds"))
    assert calls[0][1]["project"] == "birds"
    assert calls[0][1]["id"] == "job-1"
    assert calls[0][1]["config"]["schedule.epochs"] == "3"
    logged = [values for name, values in calls if name == "log"]
    assert [v["val/top1"] for v in logged if "val/top1" in v] == [0.25, 0.5, 0.75]
    assert [v["step"] for v in logged] == [1, 1, 2, 2, 3, 3]
    assert calls[-1] == ("finish", 0)


@pytest.mark.parametrize(
    ("tracker", "package"),
    [(lambda: TensorBoard("x"), "tensorboardX"), (MLflow, "mlflow"), (WandB, "wandb")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, tracker, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=r"pip install 'multigrain\["):
        tracker()
