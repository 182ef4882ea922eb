"""The state of a job, derived from its events and from what only the daemon knows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from multigrain.events.log import Event
from multigrain.events.records import (
    ArtifactRecord,
    CheckpointRecord,
    EvaluationRecord,
    JobError,
    JobState,
    LossRecord,
    ProgressRecord,
    StateRecord,
)
from multigrain.files import parse_json
from multigrain.jobs.job_request import JobRequest


@dataclass
class Progress:
    """As ``multigrain.v1.Progress``."""

    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    total_epochs: int = 0
    fraction: float = 0.0
    eta_seconds: float = -1.0


_RECORDS: dict[str, Any] = {
    "error": JobError,
    "last_checkpoint": CheckpointRecord,
    "best_checkpoint": CheckpointRecord,
    "last_loss": LossRecord,
    "last_check": LossRecord,
    "artifact": ArtifactRecord,
}
# Every class with fields in a view's JSON.
NESTED: tuple[Any, ...] = (Progress, *_RECORDS.values())


@dataclass
class JobView:
    """State derived from a job's events, in order. Times are RFC 3339 strings in UTC."""

    state: JobState = JobState.QUEUED
    state_message: str = ""
    attempt: int = 0
    queued_time: str = ""
    start_time: str = ""
    end_time: str = ""
    exit_code: int | None = None
    error: JobError | None = None
    progress: Progress = field(default_factory=Progress)
    last_checkpoint: CheckpointRecord | None = None
    checkpoint_time: str = ""  # of the last one
    best_checkpoint: CheckpointRecord | None = None
    last_loss: LossRecord | None = None
    # The newest step that refreshed, or decided to keep, the curvature of any layer.
    last_check: LossRecord | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    artifact: ArtifactRecord | None = None
    last_seq: int = 0
    last_time: str = ""  # of the newest applied event

    def apply(self, event: Event) -> None:
        """Updates the view with the next event."""
        record, time = event.record, event.time
        self.last_seq, self.last_time = event.seq, time
        self.attempt = max(self.attempt, event.attempt)
        if isinstance(record, StateRecord):
            self._state(time, record)
        elif isinstance(record, LossRecord):
            self.last_loss = record
            if record.refreshed_layers or record.kept_layers:
                self.last_check = record
            self.progress = Progress(
                step=record.step,
                total_steps=record.total_steps,
                epoch=record.epoch,
                total_epochs=record.total_epochs,
                fraction=min(1.0, record.step / record.total_steps) if record.total_steps else 0.0,
                eta_seconds=record.eta_seconds,
            )
        elif isinstance(record, EvaluationRecord):
            self.metrics = {**self.metrics, **record.metrics}
            if self.last_loss is None:
                # The result of an evaluation job, not an evaluation during training.
                self.progress = Progress(record.images, record.images, fraction=1.0)
        elif isinstance(record, ProgressRecord):
            self.progress = Progress(
                step=record.done,
                total_steps=record.total,
                fraction=min(1.0, record.done / record.total) if record.total else 0.0,
                eta_seconds=record.eta_seconds,
            )
        elif isinstance(record, CheckpointRecord):
            self.last_checkpoint, self.checkpoint_time = record, time
            if record.best:
                self.best_checkpoint = record
        elif isinstance(record, ArtifactRecord):
            self.artifact = record

    def _state(self, time: str, record: StateRecord) -> None:
        self.state = record.state
        self.state_message = record.message
        if record.state in (JobState.QUEUED, JobState.STARTING):
            # An estimate from an earlier attempt does not apply to this one.
            self.progress.eta_seconds = -1.0
        if record.state is JobState.QUEUED:
            self.queued_time = time
            self.end_time, self.error, self.exit_code = "", None, None
        elif record.state is JobState.STARTING and not self.start_time:
            self.start_time = time
        elif record.state.terminal:
            self.end_time = time
            self.exit_code = record.exit_code
            self.error = record.error if record.state is JobState.FAILED else None
            self.progress.eta_seconds = 0.0
            if record.state is JobState.SUCCEEDED:
                self.progress.fraction = 1.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> JobView:
        """Reads ``to_json``'s output.

        Raises:
            ValueError, TypeError, KeyError: if it was written by an incompatible version.
        """
        body: dict[str, Any] = parse_json(text)
        body["state"] = JobState(body["state"])
        body["progress"] = Progress(**body["progress"])
        for name, kind in _RECORDS.items():
            if body.get(name) is not None:
                body[name] = kind(**body[name])
        if body["artifact"] is not None:
            artifact = body["artifact"]
            body["artifact"] = ArtifactRecord(
                artifact.model_name, artifact.model_version, tuple(artifact.files), artifact.bytes
            )
        return cls(**body)


@dataclass(frozen=True)
class Job:
    """A job as clients see it.

    Attributes:
        request: its specification.
        view: its state according to its events.
        cancel_requested: whether CancelJob was called since the job was last queued.
        waiting: why a queued job waits, or "".
        disk_full: whether its events are delayed by a full disk.
    """

    request: JobRequest
    view: JobView
    cancel_requested: bool = False
    waiting: str = ""
    disk_full: bool = False

    @property
    def job_id(self) -> str:
        return self.request.job_id

    @property
    def state(self) -> JobState:
        """The state shown: STOPPING from the cancel request on, before the runner reports it."""
        return JobState.STOPPING if self._being_canceled else self.view.state

    @property
    def _being_canceled(self) -> bool:
        return self.cancel_requested and not self.view.state.terminal

    @property
    def state_message(self) -> str:
        if self.disk_full and not self.view.state.terminal:
            return "data directory is full; events are delayed"
        if self._being_canceled and self.view.state is not JobState.STOPPING:
            return "cancellation requested"
        if self.view.state is JobState.QUEUED and self.waiting:
            return self.waiting
        return self.view.state_message
