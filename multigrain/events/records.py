"""The records of a job's events: a dataclass for each kind, and their JSON form.

A record is the payload of one line of ``events.jsonl``, under the key of its kind::

    {"seq":7,"time":"2026-01-31T12:00:00.123456Z","job_id":"...","attempt":1,"loss":{"step":3,...}}

Kinds and fields have the names of ``multigrain.v1.JobEvent``; ``job.proto`` describes their
meaning and units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, get_args

import msgspec


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
    compiled: bool = False


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

RECORD_TYPES: dict[str, type[Record]] = {cls.key: cls for cls in get_args(Record)}
"""The class of each kind."""

_ENCODER = msgspec.json.Encoder()


def record_fields(record: Record) -> dict[str, Any]:
    """The fields of a record, ready for :func:`encode_json`; those that are None are left out.

    JSON has no NaN and no infinity: they become the strings that protobuf's JSON form has.
    """
    return {
        name: _finite_or_text(value) for name, value in vars(record).items() if value is not None
    }


def record_from_fields(key: str, fields: object) -> Record:
    """The record of a kind; fields that it does not have (of a newer writer) are ignored.

    Raises:
        ValueError: if the kind is unknown or the fields do not fit it.
    """
    if key not in RECORD_TYPES:
        raise ValueError(f"unknown kind of record: {key}")
    # Not strict: reads "NaN" as a number.
    return msgspec.convert(fields, RECORD_TYPES[key], strict=False)


def record_from_dict(body: Mapping[str, Any]) -> Record:
    """The record in a decoded line of an event log.

    Raises:
        ValueError: if it has no record of a known kind.
    """
    for key in RECORD_TYPES:
        if key in body:
            return record_from_fields(key, body[key])
    raise ValueError(f"no known record in an event with keys {sorted(body)}")


def encode_json(body: Mapping[str, Any]) -> bytes:
    """One line of compact JSON in UTF-8, with its newline."""
    try:
        return _ENCODER.encode(body) + b"\n"
    except UnicodeEncodeError:
        # Unpaired surrogates: Python has them in file names that are not UTF-8.
        return _ENCODER.encode(_escape_surrogates(msgspec.to_builtins(body))) + b"\n"


def _finite_or_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite_or_text(inner) for key, inner in value.items()}
    return value


def _escape_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escape_surrogates(key): _escape_surrogates(inner) for key, inner in value.items()}
    return [_escape_surrogates(inner) for inner in value] if isinstance(value, list) else value
