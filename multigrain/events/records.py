"""What a job tells: one dataclass a kind, with the field names of ``multigrain.v1.JobEvent``.

A record becomes one line of ``events.jsonl``::

    {"seq":7,"time":"2026-01-31T12:00:00.123456Z","job_id":"...","attempt":1,"loss":{"step":3,...}}

Units and meanings stand in the comments of ``job.proto``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar


class JobState(StrEnum):
    """State of a job; names of ``multigrain.v1.JobState`` without their prefix."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class JobError:
    """Why a job failed; ``kind`` is a name of ``ErrorKind``."""

    kind: str
    message: str
    field: str = ""
    rank: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""


@dataclass(frozen=True)
class StateRecord:
    key: ClassVar[str] = "state"
    state: JobState
    message: str = ""
    error: JobError | None = None
    exit_code: int | None = None


@dataclass(frozen=True)
class LossRecord:
    key: ClassVar[str] = "loss"
    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float
    classification_loss: float
    instance_loss: float
    learning_rate: float
    damping: float = 0.0
    images_per_second: float = 0.0
    data_wait: float = 0.0
    refreshed_layers: int = 0
    curvature_layers: int = 0
    eta_seconds: float = -1.0
    skipped: bool = False
    beta: float = 0.0
    gem_p: float = 0.0
    step_seconds: float = 0.0
    kept_layers: int = 0
    stopped_layers: int = 0
    skipped_because: str = ""
    skipped_total: int = 0
    loss_scale: float = 1.0


@dataclass(frozen=True)
class EvaluationRecord:
    key: ClassVar[str] = "evaluation"
    metrics: dict[str, float]
    step: int = 0
    epoch: int = 0
    images: int = 0
    unreadable: int = 0
    seconds: float = 0.0
    resolution: int = 0


@dataclass(frozen=True)
class ProgressRecord:
    key: ClassVar[str] = "progress"
    done: int
    total: int
    eta_seconds: float = -1.0


@dataclass(frozen=True)
class CheckpointRecord:
    key: ClassVar[str] = "checkpoint"
    step: int
    epoch: int
    name: str
    bytes: int = 0
    best: bool = False


@dataclass(frozen=True)
class LogRecord:
    """``level`` is DEBUG, INFO, WARNING or ERROR; rank -1 is the job's runner."""

    key: ClassVar[str] = "log"
    level: str
    message: str
    rank: int = -1
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ArtifactRecord:
    key: ClassVar[str] = "artifact"
    model_name: str
    model_version: int
    files: tuple[str, ...] = ()
    bytes: int = 0


Record = (
    StateRecord
    | LossRecord
    | EvaluationRecord
    | CheckpointRecord
    | LogRecord
    | ArtifactRecord
    | ProgressRecord
)

RECORD_TYPES: dict[str, type[Record]] = {
    cls.key: cls
    for cls in (
        StateRecord,
        LossRecord,
        EvaluationRecord,
        CheckpointRecord,
        LogRecord,
        ArtifactRecord,
        ProgressRecord,
    )
}


# JSON has no such numbers; these are the names that protobuf's JSON form gives them.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _written(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _written(inner) for key, inner in value.items()}
    return value


def number(value: Any) -> Any:
    """A number of a record as it was before ``record_to_dict``; of a dict, its numbers."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: number(inner) for key, inner in value.items()}
    return value


def record_to_dict(record: Record) -> dict[str, Any]:
    """``{key: fields}``, ready for JSON; fields that are None are left out.

    A number that is not finite (the loss of a skipped step, say) is written as a string.
    """
    body = {name: _written(value) for name, value in asdict(record).items() if value is not None}
    return {record.key: body}


def record_from_dict(body: dict[str, Any]) -> Record:
    """The record in a decoded line. Unknown fields (of a newer writer) are ignored.

    Raises:
        ValueError: if no known record key is present, or its content is no object.
        TypeError, KeyError: if that has not the fields of the record.
    """
    for key, cls in RECORD_TYPES.items():
        if key in body:
            if not isinstance(body[key], dict):
                raise ValueError(f"the {key} of an event is no object")
            names = {f.name for f in fields(cls)}
            values = {name: value for name, value in body[key].items() if name in names}
            if cls in (LossRecord, EvaluationRecord):
                values = {name: number(value) for name, value in values.items()}
            if cls is StateRecord:
                values["state"] = JobState(values["state"])
                if values.get("error"):
                    values["error"] = JobError(**values["error"])
            if cls is ArtifactRecord:
                values["files"] = tuple(values.get("files", ()))
            return cls(**values)
    raise ValueError(f"no known record in an event with keys {sorted(body)}")
