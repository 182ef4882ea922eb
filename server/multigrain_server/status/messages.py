"""The newest warnings and errors of a job, from the end of its record."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from multigrain.events.records import LogRecord
from multigrain_server.jobs.event_feed import parse_line

_TAIL_BYTES = 256 * 1024
_SHOWN = 20
_LEVELS = ("WARNING", "ERROR")


@dataclass(frozen=True)
class Message:
    """A log event; ``time`` as the event has it (RFC 3339, UTC)."""

    time: str
    level: str
    rank: int
    text: str


def newest(path: Path) -> tuple[Message, ...]:
    """Newest first; those further back than the last 256 KiB of an ``events.jsonl`` are not
    looked for."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).split(b"\n")
    except OSError:
        return ()
    found: list[Message] = []
    # The first may be cut off, and what follows the last newline is not whole yet.
    for raw in reversed(lines[:-1] if size <= _TAIL_BYTES else lines[1:-1]):
        if len(found) == _SHOWN:
            break
        if b'"log":' not in raw or (line := parse_line(raw)) is None or line.kind != "log":
            continue
        try:
            event = line.event()
        except (ValueError, TypeError, KeyError):
            continue
        record = event.record
        if isinstance(record, LogRecord) and record.level in _LEVELS:
            found.append(Message(event.time, record.level, record.rank, record.message))
    return tuple(found)
