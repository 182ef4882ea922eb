"""Follows a job into an experiment tracker: TensorBoard, MLflow or Weights & Biases.

Each through its own library, which is an extra: ``multigrain[tensorboard]``, ``multigrain[mlflow]``
or ``multigrain[wandb]``.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from multigrain.v1.job_pb2 import Job, JobEvent
from multigrain_client.errors import MissingPackage
from multigrain_client.jobs import is_terminal, state_name
from multigrain_client.json_format import flatten, to_plain
from multigrain_client.sync.client import Client

KINDS = ("loss", "evaluation", "state")

# Of a loss event, under the names that trackers group by.
_LOSS = {
    "loss": "train/loss",
    "classification_loss": "train/classification_loss",
    "instance_loss": "train/instance_loss",
    "learning_rate": "train/learning_rate",
    "images_per_second": "train/images_per_second",
}
# MLflow's limits of a parameter's value and of one batch of metrics.
_LONGEST_VALUE = 500
_MOST_IN_A_BATCH = 500
_PARAMS_IN_A_BATCH = 100


class Tracker(ABC):
    """Where the values of one job go."""

    @abstractmethod
    def begin(self, job: Job, settings: Mapping[str, str]) -> None:
        """Takes the job and its settings, under dotted names."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Takes finite values of a step, and when it was, in seconds since the epoch."""

    @abstractmethod
    def end(self, job: Job) -> None:
        """Writes what is left; ``job`` has ended, or is no longer followed."""


class TensorBoard(Tracker):
    """Writes event files for TensorBoard with tensorboardX.

    Args:
        folder: the folder of all runs; the job's is below it.

    Raises:
        MissingPackage: without tensorboardX.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", "tensorboardX") from error
        self._folder = os.fspath(folder)
        self._open: Any = SummaryWriter

    def begin(self, job: Job, settings: Mapping[str, str]) -> None:
        self._writer = self._open(os.path.join(self._folder, job.job_id))
        rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=seconds)

    def end(self, job: Job) -> None:
        self._writer.close()


class MLflow(Tracker):
    """Logs to an MLflow server, or to a folder or database that MLflow writes itself.

    Args:
        uri: of the tracking server; "" = the environment's (MLFLOW_TRACKING_URI).
        experiment: its name; created if it does not exist.

    Raises:
        MissingPackage: without mlflow.
    """

    def __init__(self, uri: str = "", experiment: str = "multigrain") -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        except ImportError as error:
            raise _missing("mlflow", "mlflow-skinny") from error
        self._client: Any = MlflowClient(tracking_uri=uri or None)
        self._metric: Any = Metric
        self._param: Any = Param
        self._experiment = experiment
        self._waiting: list[Any] = []

    def begin(self, job: Job, settings: Mapping[str, str]) -> None:
        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        tags = {**job.labels, "multigrain.job_id": job.job_id}
        name = job.name or job.job_id
        self._run = self._client.create_run(number, run_name=name, tags=tags).info.run_id
        params = [self._param(key, value[:_LONGEST_VALUE]) for key, value in settings.items()]
        for at in range(0, len(params), _PARAMS_IN_A_BATCH):
            self._client.log_batch(self._run, params=params[at : at + _PARAMS_IN_A_BATCH])

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        when = round(1000 * seconds)
        self._waiting += [self._metric(name, v, when, step) for name, v in values.items()]
        if len(self._waiting) >= _MOST_IN_A_BATCH:
            self._send()

    def end(self, job: Job) -> None:
        self._send()
        status = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED"}.get(state_name(job), "KILLED")
        self._client.set_terminated(self._run, status)

    def _send(self) -> None:
        for at in range(0, len(self._waiting), _MOST_IN_A_BATCH):
            batch = self._waiting[at : at + _MOST_IN_A_BATCH]
            self._client.log_batch(self._run, metrics=batch)
        self._waiting.clear()


class WandB(Tracker):
    """Logs to Weights & Biases, as its environment says (WANDB_API_KEY, WANDB_MODE).

    Args:
        project: its name.

    Raises:
        MissingPackage: without wandb.
    """

    def __init__(self, project: str = "multigrain") -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", "wandb") from error
        self._wandb: Any = wandb
        self._project = project

    def begin(self, job: Job, settings: Mapping[str, str]) -> None:
        tags = [f"{key}={value}"[:64] for key, value in sorted(job.labels.items())]
        self._run = self._wandb.init(
            project=self._project,
            name=job.name or job.job_id,
            id=job.job_id,
            resume="allow",
            config=dict(settings),
            tags=tags,
        )
        # An own axis: a later attempt repeats steps, which W&B's own one refuses.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        self._run.log({**values, "step": step})

    def end(self, job: Job) -> None:
        self._run.finish(exit_code=0 if state_name(job) == "SUCCEEDED" else 1)


def follow(client: Client, job: Job, tracker: Tracker) -> tuple[Job, int]:
    """Sends the losses and evaluations of a job to a tracker until the job has ended.

    Args:
        client: a client.
        job: the job, which may have ended already.
        tracker: not used before.

    Returns:
        The job as it is now, and how many points were sent.
    """
    which = job.WhichOneof("spec")
    tracker.begin(job, flatten(to_plain(getattr(job, which)) if which else {}))
    sent, after = 0, 0
    try:
        while True:
            for event in client.stream_events(job, after_seq=after, kinds=KINDS):
                after = event.seq
                values, step = _values(event)
                if values:
                    tracker.log(values, step, event.time.ToNanoseconds() / 1e9)
                    sent += 1
            job = client.job(job)
            # A job that was resumed at the moment its stream ended has more events.
            if is_terminal(job):
                return job, sent
    finally:
        tracker.end(job)


def _values(event: JobEvent) -> tuple[dict[str, float], int]:
    """The finite values of an event, and their step; none of other kinds of events."""
    if event.HasField("loss"):
        named = {name: getattr(event.loss, field) for field, name in _LOSS.items()}
        step = event.loss.step
    elif event.HasField("evaluation"):
        named = {f"val/{name}": value for name, value in event.evaluation.metrics.items()}
        step = event.evaluation.step
    else:
        return {}, 0
    return {name: value for name, value in named.items() if math.isfinite(value)}, step


def _missing(extra: str, package: str) -> MissingPackage:
    return MissingPackage(f"this needs {package}: pip install 'multigrain[{extra}]'")
