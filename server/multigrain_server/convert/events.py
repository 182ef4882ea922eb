"""Messages that are encoded once and sent to many.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from multigrain.events.records import number
from multigrain.v1.common_pb2 import Error, ErrorKind
from multigrain.v1.job_pb2 import (
    ArtifactEvent,
    CheckpointEvent,
    EvaluationEvent,
    EventKind,
    Heartbeat,
    JobEvent,
    JobState,
    LogEvent,
    LossEvent,
    ProgressEvent,
    StateEvent,
)
from multigrain_server.jobs.event_reader import EventLine

_LENGTH_DELIMITED = 2


def joined(field: int, messages: Sequence[bytes]) -> bytes:
    """A message whose repeated field ``field`` (of a number below 16) holds ``messages``."""
    return b"".join([part for one in messages for part in (_head(field, len(one)), one)])


@lru_cache(maxsize=1024)
def _head(field: int, length: int) -> bytes:
    """What stands before a message in a field; those of a job are of few lengths."""
    return bytes([field << 3 | _LENGTH_DELIMITED]) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def unless_encoded(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """A serializer that lets bytes through: a handler may answer with an encoded message.

    None, of a handler whose messages are bytes anyway, stays None.
    """
    if serialize is None:
        return None

    def encode(message: Any) -> bytes:
        return message if isinstance(message, bytes) else serialize(message)

    return encode


# MERGED: Lines of ``events.jsonl`` as messages of the contract.


KIND_OF_ENUM: dict[int, str] = {
    EventKind.EVENT_KIND_STATE: "state",
    EventKind.EVENT_KIND_LOSS: "loss",
    EventKind.EVENT_KIND_EVALUATION: "evaluation",
    EventKind.EVENT_KIND_CHECKPOINT: "checkpoint",
    EventKind.EVENT_KIND_LOG: "log",
    EventKind.EVENT_KIND_ARTIFACT: "artifact",
    EventKind.EVENT_KIND_PROGRESS: "progress",
}
_WRITTEN_LENGTH = len("2026-01-31T12:00:00.123456Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A writer of a newer version may add fields, which this contract cannot carry.
_FIELDS: dict[type, frozenset[str]] = {
    cls: frozenset(cls.DESCRIPTOR.fields_by_name)
    for cls in (
        ArtifactEvent,
        CheckpointEvent,
        Error,
        EvaluationEvent,
        LogEvent,
        LossEvent,
        ProgressEvent,
    )
}


def timestamp(text: str) -> Timestamp | None:
    """An RFC 3339 string in UTC as a Timestamp; None for ""."""
    if not text:
        return None
    if len(text) == _WRITTEN_LENGTH and text[19] == "." and text[26] == "Z":
        # As every event is written; many of them in one second.
        return Timestamp(seconds=_seconds(text[:19] + "Z"), nanos=int(text[20:26]) * 1000)
    passed = datetime.fromisoformat(text) - _EPOCH
    seconds = passed.days * 86_400 + passed.seconds
    return Timestamp(seconds=seconds, nanos=passed.microseconds * 1000)


@lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    passed = datetime.fromisoformat(text) - _EPOCH
    return passed.days * 86_400 + passed.seconds


def _known(cls: type, body: dict[str, Any]) -> dict[str, Any]:
    known = _FIELDS[cls]
    if not isinstance(body, dict):
        raise ValueError(f"not the fields of a {cls.__name__}")
    return {name: value for name, value in body.items() if name in known and value is not None}


def error_message(body: dict[str, Any]) -> Error:
    """A JobError's fields as a message."""
    fields = _known(Error, body)
    name = f"ERROR_KIND_{fields.pop('kind', 'UNSPECIFIED')}"
    known = name in ErrorKind.keys()  # noqa: SIM118 - an enum wrapper is not a mapping
    return Error(kind=ErrorKind.Value(name) if known else ErrorKind.ERROR_KIND_INTERNAL, **fields)


def artifact_message(body: dict[str, Any]) -> ArtifactEvent:
    """An ArtifactRecord's fields as a message."""
    name, version = body["model_name"], body["model_version"]
    return ArtifactEvent(model=f"{name}@{version}", **_known(ArtifactEvent, body))


def _loss_message(body: dict[str, Any]) -> LossEvent:
    try:
        # A job has hundreds of thousands, nearly all of them just as the contract has them.
        return LossEvent(**body)
    except (TypeError, ValueError):
        return LossEvent(**number(_known(LossEvent, body)))


def event_message(event: EventLine) -> JobEvent:
    """A stored event as a JobEvent; one of a kind that the contract lacks has no content.

    Raises:
        ValueError, KeyError, TypeError: if the line is damaged.
    """
    data = event.decode()
    body: dict[str, Any] = data.get(event.kind, {})
    message = JobEvent(
        seq=event.seq,
        time=timestamp(data["time"]),
        job_id=data["job_id"],
        attempt=data["attempt"],
        loss=_loss_message(body) if event.kind == "loss" else None,
    )
    match event.kind:
        case "loss":  # nearly every one: complete already
            pass
        case "state":
            message.state.CopyFrom(
                StateEvent(
                    state=JobState.Value(f"JOB_STATE_{body['state']}"),
                    message=body.get("message", ""),
                    error=error_message(body["error"]) if body.get("error") else None,
                    exit_code=body.get("exit_code"),
                )
            )
        case "evaluation":
            figures = number(_known(EvaluationEvent, body))
            message.evaluation.CopyFrom(EvaluationEvent(**figures))
        case "checkpoint":
            message.checkpoint.CopyFrom(CheckpointEvent(**_known(CheckpointEvent, body)))
        case "log":
            fields = _known(LogEvent, body)
            level = LogEvent.Level.Value(f"LEVEL_{fields.pop('level', 'INFO')}")
            message.log.CopyFrom(LogEvent(level=level, **fields))
        case "artifact":
            message.artifact.CopyFrom(artifact_message(body))
        case "progress":
            message.progress.CopyFrom(ProgressEvent(**_known(ProgressEvent, body)))
    return message


def heartbeat_message(job_id: str, attempt: int, last_seq: int) -> JobEvent:
    """What is sent while nothing happens: the stream lives, and nothing later than last_seq is."""
    message = JobEvent(seq=last_seq, job_id=job_id, attempt=attempt, heartbeat=Heartbeat())
    message.time.GetCurrentTime()
    return message
