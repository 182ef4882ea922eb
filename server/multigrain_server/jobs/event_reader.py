"""Reads a job's ``events.jsonl`` while somebody else writes it."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog

from multigrain.events.records import RECORD_TYPES

_log = structlog.get_logger(__name__)

INDEX_EVERY = 64
CHUNK_BYTES = 1 << 20
READ_BYTES = 1 << 18


# How every writer begins a line. A job has hundreds of thousands of losses of which most are
# only passed over: this tells what is needed for that many times faster than decoding them.
_HEAD = re.compile(rb'\{"seq":(\d{1,18}),"time":"[^"]*","job_id":"[^"]*","attempt":\d+,"(\w+)":\{')

_EVENT_KEYS = frozenset({"seq", "time", "job_id", "attempt"})

_CHECK = re.compile(rb'"(?:refreshed|kept)_layers": ?[1-9]')


class EventLine(NamedTuple):
    """One line. ``kind`` is a key of RECORD_TYPES, or that of a newer writer."""

    seq: int
    kind: str
    raw: bytes

    @property
    def checks_curvature(self) -> bool:
        """Whether a loss line tells of layers that were refreshed or kept."""
        return _CHECK.search(self.raw) is not None

    def decode(self) -> dict[str, Any]:
        """The line's content: seq, time, job_id, attempt, and the record under its kind.

        Raises:
            ValueError: if it is damaged.
        """
        # Half a surrogate pair (a file name that is not UTF-8, say), which no message can carry,
        # is no JSON either for the faster reader.
        halves = b"\\ud" in self.raw
        data = _with_whole_characters(json.loads(self.raw)) if halves else orjson.loads(self.raw)
        if not isinstance(data, dict) or not data.keys() >= _EVENT_KEYS:
            raise ValueError("not an event")
        return data


def _with_whole_characters(value: Any) -> Any:
    """The value with every half of a surrogate pair written as an escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {
            _with_whole_characters(key): _with_whole_characters(inner)
            for key, inner in value.items()
        }
    return [_with_whole_characters(inner) for inner in value] if isinstance(value, list) else value


def parse_line(raw: bytes) -> EventLine | None:
    """The event in a line without its newline; None (and a log line) if it is not one."""
    head = _HEAD.match(raw)
    if head is not None and raw.endswith(b"}}"):
        return EventLine(int(head[1]), head[2].decode(), raw)
    try:
        data = EventLine(0, "", raw).decode()
        kind = next((key for key in RECORD_TYPES if key in data), "")
        if not isinstance(data["seq"], int) or not 0 < data["seq"] < 10**18:
            raise ValueError("its seq is no number that the index can hold")
        return EventLine(data["seq"], kind, raw)
    except (ValueError, TypeError, RecursionError) as error:
        _log.error("event line unreadable", reason=repr(error), line=repr(raw[:200]))
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

    def read_after(self, after_seq: int, limit: int = 1024) -> list[EventLine]:
        """At most ``limit`` events with a greater seq, among those ``read_new`` has returned."""
        at = bisect_right(self._index_seqs, after_seq + 1) - 1
        position = self._index_offsets[at] if at >= 0 else 0
        events: list[EventLine] = []
        with self.path.open("rb") as file:
            file.seek(position)
            while position < self.offset and len(events) < limit:
                data = file.read(min(READ_BYTES, self.offset - position))
                if not data.endswith(b"\n"):
                    data += file.readline()
                position += len(data)
                for raw in data.split(b"\n")[:-1]:
                    event = parse_line(raw)
                    if event is not None and event.seq > after_seq:
                        events.append(event)
                        if len(events) == limit:
                            return events
        return events
