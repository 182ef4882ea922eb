"""What the runner and the processes of a job say to each other: one JSON object a line.

Every line is ``{"<name>": {fields}}``. A record travels as it stands in the event log.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from multigrain.events.records import Record, record_from_dict, record_to_dict

SCHEDULER_RANK = -2
"""Stands for MindSpore's scheduler process where a rank is asked for."""


@dataclass(frozen=True)
class GuardHello:
    """First line of a guard: the parent of a worker (or of the scheduler), which outlives it."""

    name: ClassVar[str] = "guard"
    token: str
    rank: int
    pid: int


@dataclass(frozen=True)
class Hello:
    """First line of a worker."""

    name: ClassVar[str] = "hello"
    token: str
    rank: int
    world: int
    pid: int


@dataclass(frozen=True)
class Ready:
    """The worker has joined the cluster and begins its work."""

    name: ClassVar[str] = "ready"


@dataclass(frozen=True)
class Emit:
    """A record for the event log."""

    name: ClassVar[str] = "record"
    record: Record


@dataclass(frozen=True)
class Alive:
    """The work goes on."""

    name: ClassVar[str] = "alive"


@dataclass(frozen=True)
class Failed:
    """The work raised. ``kind`` is a name of ErrorKind, or "" for a defect: any other exception,
    for want of memory say."""

    name: ClassVar[str] = "failed"
    kind: str
    message: str
    field: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True)
class Done:
    """The work returned; fields as those of ``multigrain.jobs.context.Outcome``."""

    name: ClassVar[str] = "done"
    stopped: bool
    message: str


@dataclass(frozen=True)
class Exit:
    """Said by a guard: its process has ended. ``signal`` is set if a signal killed it."""

    name: ClassVar[str] = "exit"
    code: int
    signal: int | None = None


@dataclass(frozen=True)
class Terminate:
    """Said by a guard that got SIGTERM: somebody wants the job to end in order."""

    name: ClassVar[str] = "terminate"


@dataclass(frozen=True)
class Stop:
    """Runner to worker: save what is to be saved and return."""

    name: ClassVar[str] = "stop"


Message = GuardHello | Hello | Ready | Emit | Alive | Failed | Done | Exit | Terminate | Stop

_TYPES: dict[str, type[Message]] = {
    cls.name: cls
    for cls in (GuardHello, Hello, Ready, Emit, Alive, Failed, Done, Exit, Terminate, Stop)
}


def encode(message: Message) -> bytes:
    """The line of a message, with its newline."""
    if isinstance(message, Emit):
        fields: dict[str, Any] = record_to_dict(message.record)
    else:
        fields = asdict(message)
    return (
        json.dumps({message.name: fields}, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    )


def decode(line: bytes) -> Message:
    """
    Raises:
        ValueError: if the line is not a message.
    """
    try:
        ((name, fields),) = json.loads(line).items()
        cls = _TYPES[name]
        if cls is Emit:
            return Emit(record_from_dict(fields))
        return cls(**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from error
