"""Reads a job's ``events.jsonl`` while somebody else writes it."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from multigrain.events.records import RECORD_TYPES

_log = structlog.get_logger(__name__)

INDEX_EVERY = 64
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class EventLine:
    """One decoded line. ``kind`` is a key of RECORD_TYPES, or "" for one of a newer writer."""

    seq: int
    time: str
    job_id: str
    attempt: int
    kind: str
    data: dict[str, Any]


def parse_line(line: bytes) -> EventLine | None:
    """The event in a line without its newline; None (and a log line) if it is not one."""
    try:
        data = json.loads(line)
        kind = next((key for key in RECORD_TYPES if key in data), "")
        return EventLine(
            int(data["seq"]), data["time"], data["job_id"], int(data["attempt"]), kind, data
        )
    except (ValueError, KeyError, TypeError) as error:
        _log.error("event line unreadable", reason=repr(error), line=repr(line[:200]))
        return None


class EventFile:
    """Whole lines only: a torn last line stays unread until it is whole (or was truncated by
    the next writer). A sparse index of byte offsets makes any ``seq`` reachable at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_seq = 0
        self.offset = 0  # end of the last whole line read
        self._index_seqs: list[int] = []
        self._index_offsets: list[int] = []

    def read_new(self) -> list[EventLine]:
        """Events that were appended since the last call, at most about CHUNK_BYTES of them."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return []
        if size <= self.offset:
            return []
        lines: list[EventLine] = []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(CHUNK_BYTES)
            if b"\n" not in data and len(data) == CHUNK_BYTES:
                data += file.readline()
        whole = data.rfind(b"\n") + 1
        position = self.offset
        for raw in data[:whole].split(b"\n")[:-1]:
            event = parse_line(raw)
            if event is not None and event.seq <= self.last_seq:
                _log.error("event out of order", seq=event.seq, last_seq=self.last_seq)
                event = None
            if event is not None:
                if not self._index_seqs or event.seq - self._index_seqs[-1] >= INDEX_EVERY:
                    self._index_seqs.append(event.seq)
                    self._index_offsets.append(position)
                self.last_seq = event.seq
                lines.append(event)
            position += len(raw) + 1
        self.offset = position
        return lines

    def read_after(self, after_seq: int, limit: int = 256) -> list[EventLine]:
        """At most ``limit`` events with a greater seq, among those ``read_new`` has returned."""
        at = bisect_right(self._index_seqs, after_seq + 1) - 1
        position = self._index_offsets[at] if at >= 0 else 0
        events: list[EventLine] = []
        with self.path.open("rb") as file:
            file.seek(position)
            while position < self.offset and len(events) < limit:
                raw = file.readline()
                position += len(raw)
                event = parse_line(raw)
                if event is not None and event.seq > after_seq:
                    events.append(event)
        return events
