"""Follows a job's event log (``events.jsonl``) while its runner writes it, for any number of
subscribers."""

from __future__ import annotations

import asyncio
import errno
import re
import stat
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import MAX_LINE_BYTES, Event
from multigrain.events.records import RECORD_TYPES
from multigrain.files import open_regular
from multigrain_server.jobs.job import JobView

_log = structlog.get_logger(__name__)

# Recent events that a feed keeps in memory for its subscribers.
WINDOW = 1024
# Bytes of event log lines in a batch, unless a single line is longer. As protobuf they are
# shorter, and far below the 4 MiB that a gRPC message may have.
BATCH_BYTES = 1 << 19

_INDEX_EVERY = 64
_LOGGED_LINES = 20  # most unreadable lines of a log that are named in the daemon's log
# Read and understood without a break, which takes some milliseconds.
_CHUNK_BYTES = 1 << 18
# Recent events that a subscriber takes at once.
_FEW_LINES = 64
_READ_BYTES = 1 << 18

# The start of a line as EventWriter writes it. A job has hundreds of thousands of losses, most
# of which are only skipped over: this finds seq and kind many times faster than decoding does.
_HEAD = re.compile(rb'\{"seq":(\d{1,18}),"time":"[^"]*","job_id":"[^"]*","attempt":\d+,"(\w+)":\{')
_EVENT_KEYS = frozenset({"seq", "time", "job_id", "attempt"})
_CURVATURE_CHECK = re.compile(rb'"(?:refreshed|kept)_layers": ?[1-9]')

_decode_json = msgspec.json.Decoder(dict).decode


@dataclass(slots=True, eq=False)
class EventLine:
    """One line of an event log.

    Attributes:
        seq: number of the event.
        kind: a key of RECORD_TYPES, or one that only a newer version knows.
        raw: the line without its newline.
        encoded: the event as sent to subscribers; cached by the sender, because many
            subscribers receive the same events.
        job_id: the job whose log it is from, for messages.
    """

    seq: int
    kind: str
    raw: bytes
    encoded: bytes | None = None
    job_id: str = ""

    @property
    def has_curvature_check(self) -> bool:
        """Whether a loss line reports layers whose curvature was refreshed or kept."""
        return _CURVATURE_CHECK.search(self.raw) is not None

    def fields(self) -> dict[str, Any]:
        """The decoded line: seq, time, job_id, attempt, and the record under its kind.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            data: dict[str, Any] = _decode_json(self.raw)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not data.keys() >= _EVENT_KEYS:
            raise ValueError("not an event")
        return data

    def event(self) -> Event:
        """The decoded line with its typed record.

        Raises:
            ValueError: if it is damaged, or of a kind that is not known.
        """
        return Event.decode(self.raw)


def parse_line(raw: bytes, job_id: str, *, log: bool = True) -> EventLine | None:
    """The event in a line without its newline; None (and a log message) if it is not one.

    Args:
        raw: the line.
        job_id: the job whose log it is from, for messages.
        log: whether to log what is wrong with it.
    """
    head = _HEAD.match(raw)
    if head is not None and raw.endswith(b"}}"):
        return EventLine(int(head[1]), head[2].decode(), raw, job_id=job_id)
    try:
        data = EventLine(0, "", raw).fields()
        kind = next((key for key in RECORD_TYPES if key in data), "")
        if not isinstance(data["seq"], int) or not 0 < data["seq"] < 10**18:
            raise ValueError("seq is not a number between 1 and 10**18")
        return EventLine(data["seq"], kind, raw, job_id=job_id)
    except (ValueError, TypeError) as error:
        if log:
            shown = repr(raw[:200])
            _log.error("event line unreadable", job_id=job_id, reason=repr(error), line=shown)
        return None


class EventLogReader:
    """Reads an event log that another process appends to.

    Returns complete lines only: an incomplete last line is returned once it is complete (or
    never, if the next writer cuts it off). A sparse index of byte offsets finds any ``seq``
    without reading the log from its start.
    """

    def __init__(self, path: Path) -> None:
        self._unreadable = 0
        self.path = path
        self.job_id = path.parent.name  # the log is a file of the job's folder
        self.last_seq = 0
        self.offset = 0  # end of the last complete line read
        self._index_seqs: list[int] = []
        self._index_offsets: list[int] = []

    def read_new(self) -> list[EventLine]:
        """Events appended since the last call, about 256 KiB of them at most.

        Raises:
            OSError: if the log cannot be read, is no regular file, or has a line that is too long.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return []
        if stat.S_ISREG(found.st_mode) and found.st_size <= self.offset:
            return []
        lines: list[EventLine] = []
        with open_regular(self.path) as file:
            file.seek(self.offset)
            data = file.read(_CHUNK_BYTES)
            if b"\n" not in data and len(data) == _CHUNK_BYTES:
                data += file.readline(MAX_LINE_BYTES)
                if len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
                    raise OSError(errno.EFBIG, f"it has a line of more than {MAX_LINE_BYTES} bytes")
        end = data.rfind(b"\n") + 1
        position = self.offset
        for raw in data[:end].split(b"\n")[:-1]:
            logged = self._unreadable < _LOGGED_LINES
            line = parse_line(raw, self.job_id, log=logged)
            if line is not None and line.seq <= self.last_seq:
                if logged:
                    _log.error(
                        "event out of order",
                        job_id=self.job_id,
                        seq=line.seq,
                        last_seq=self.last_seq,
                    )
                line = None
            if line is None:
                self._unreadable += 1
            else:
                if not self._index_seqs or line.seq - self._index_seqs[-1] >= _INDEX_EVERY:
                    self._index_seqs.append(line.seq)
                    self._index_offsets.append(position)
                self.last_seq = line.seq
                lines.append(line)
            position += len(raw) + 1
        self.offset = position
        return lines

    def read_after(self, after_seq: int, limit: int = 1024) -> list[EventLine]:
        """At most ``limit`` events with a greater seq, of those that ``read_new`` has returned.

        Raises:
            OSError: as ``read_new``.
        """
        at = bisect_right(self._index_seqs, after_seq + 1) - 1
        position = self._index_offsets[at] if at >= 0 else 0
        lines: list[EventLine] = []
        with open_regular(self.path) as file:
            file.seek(position)
            while position < self.offset and len(lines) < limit:
                data = file.read(min(_READ_BYTES, self.offset - position))
                if not data:  # the log has been cut off
                    break
                if not data.endswith(b"\n"):
                    data += file.readline(MAX_LINE_BYTES)
                position += len(data)
                for raw in data.split(b"\n")[:-1]:
                    line = parse_line(raw, self.job_id)
                    if line is not None and line.seq > after_seq:
                        lines.append(line)
                        if len(lines) == limit:
                            return lines
        return lines


class EventBatch(NamedTuple):
    """Events to send together, in order.

    Attributes:
        lines: the events; empty for a heartbeat.
        last_seq: the subscriber has received all events it selected up to this one.
    """

    lines: list[EventLine]
    last_seq: int


class EventFeed:
    """One reader of a job's event log, shared by all subscribers.

    ``poll`` (called by the feed's owner) reads what was appended and wakes the subscribers. Each
    of them reads at its own pace: recent events from memory, older ones from the file. No event
    is dropped, and a slow subscriber delays no other.

    Args:
        job_id: the job.
        path: its ``events.jsonl``.
        heartbeat_seconds: a subscriber receives at least one batch in this time.
        turns: held by a subscriber of any feed while it reads old events; None = of this feed.

    Attributes:
        view: the job's state according to all events read.
        subscribers: number of open streams.
        at_end: whether the last ``poll`` left nothing to read.
    """

    def __init__(
        self,
        job_id: str,
        path: Path,
        heartbeat_seconds: float = 10.0,
        turns: asyncio.Lock | None = None,
    ) -> None:
        self._turns = turns or asyncio.Lock()
        self.job_id = job_id
        self.view = JobView()
        self.subscribers = 0
        self.at_end = False
        self._log_reader = EventLogReader(path)
        self._heartbeat_seconds = heartbeat_seconds
        # Filled only while there are subscribers; without gaps, and up to the newest event.
        self._window: deque[EventLine] = deque(maxlen=WINDOW)
        self._unreported: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._closed: MultigrainError | None = None

    @property
    def last_seq(self) -> int:
        return self._log_reader.last_seq

    @property
    def offset(self) -> int:
        """Bytes of the event log that were read."""
        return self._log_reader.offset

    def poll(self, max_chunks: int | None = None) -> Counter[str]:
        """Reads new events: all of them, or ``max_chunks`` reads of about 256 KiB.

        Returns:
            Events of each kind since the last call, including those that ``catch_up`` read.

        Raises:
            MultigrainError: STORAGE, if the log cannot be read.
        """
        self.at_end = False
        while (max_chunks is None or max_chunks > 0) and not self.at_end:
            self.at_end = not self._read_chunk()
            max_chunks = None if max_chunks is None else max_chunks - 1
        unreported, self._unreported = self._unreported, Counter()
        return unreported

    async def catch_up(self) -> None:
        """Reads all new events without blocking the event loop for long.

        Raises:
            MultigrainError: STORAGE, if the log cannot be read.
        """
        while True:
            # In turns: subscribers that come at the same time read one part in a turn of the
            # event loop, not one each.
            async with self._turns:
                if not self._read_chunk():
                    return
                await asyncio.sleep(0)

    def _read_chunk(self) -> bool:
        """Reads once. False if there is nothing new."""
        try:
            lines = self._log_reader.read_new()
        except OSError as error:
            raise self._unreadable(error) from error
        if lines:
            self._update(lines)
            self._unreported.update(line.kind for line in lines)
            self._wake_subscribers()
        return bool(lines)

    def _unreadable(self, error: OSError) -> MultigrainError:
        return MultigrainError(
            ErrorKind.STORAGE,
            f"the event log of job {self.job_id} cannot be read ({error.strerror or error}): "
            "restore events.jsonl in the job's folder, or delete the folder",
        )

    def _update(self, lines: list[EventLine]) -> None:
        # Only the newest loss matters to the view, and the newest that reports a check of the
        # curvature: the others are not decoded.
        losses = [line for line in reversed(lines) if line.kind == "loss"]
        last_loss = losses[0].seq if losses else 0
        last_check = next((line.seq for line in losses if line.has_curvature_check), 0)
        for line in lines:
            if line.kind != "loss" or line.seq in (last_loss, last_check):
                self._update_view(line)
            if not self.subscribers:
                continue
            if self._window and self._window[-1].seq + 1 != line.seq:
                self._window.clear()
            self._window.append(line)
        self.view.last_seq = self.last_seq
        if not self.subscribers:
            self._window.clear()

    def _update_view(self, line: EventLine) -> None:
        try:
            self.view.apply(line.event())
        except ValueError as error:
            # Written by a newer version: subscribers still receive the fields that are known.
            _log.warning(
                "event not understood", job_id=self.job_id, seq=line.seq, reason=repr(error)
            )

    def _wake_subscribers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self, reason: MultigrainError) -> None:
        """Ends every stream with an error (the server stops, or the job was deleted)."""
        self._closed = reason
        self._wake_subscribers()

    async def batches(
        self, after_seq: int, kinds: frozenset[str], follow: bool
    ) -> AsyncGenerator[EventBatch, None]:
        """Events with a greater seq, each exactly once and in order.

        A batch holds what has happened since the last one, up to BATCH_BYTES: a subscriber that
        is behind receives large batches. An idle stream yields heartbeats.

        Args:
            after_seq: seq of the last event that the subscriber has; 0 for none.
            kinds: of events to send; empty for all.
            follow: True ends the stream when the job is in a terminal state and everything was
                sent, False when all present events were sent.

        Raises:
            MultigrainError: INVALID_FIELD for an ``after_seq`` beyond the newest event; STORAGE,
                if the log cannot be read; whatever ``close`` was given.
        """
        await self.catch_up()
        if after_seq > self.last_seq:
            raise MultigrainError.field(
                "after_seq",
                f"{after_seq} is beyond the newest event of job {self.job_id}, {self.last_seq}",
            )
        self.subscribers += 1
        now = asyncio.get_running_loop().time
        try:
            cursor = after_seq
            last_sent = now()
            while True:
                # Taken before last_seq is read: no wake-up between the two is lost.
                changed = self._changed
                if self._closed is not None:
                    raise self._closed
                if cursor < self.last_seq:
                    batch = await self._next_batch(cursor, kinds)
                    cursor = batch.last_seq
                    if batch.lines:
                        yield batch
                        last_sent = now()
                    # Yield to other tasks even if the filter left nothing to send.
                    await asyncio.sleep(0)
                    continue
                if not follow or self.view.state.terminal:
                    return
                try:
                    async with asyncio.timeout_at(last_sent + self._heartbeat_seconds):
                        await changed.wait()
                except TimeoutError:
                    yield EventBatch([], cursor)
                    last_sent = now()
        finally:
            self.subscribers -= 1

    async def _next_batch(self, cursor: int, kinds: frozenset[str]) -> EventBatch:
        recent = self._recent_lines(cursor)
        if recent is not None and len(recent) <= _FEW_LINES:
            return _batch(recent, cursor, kinds)
        # In turns: each of many subscribers that are behind takes some milliseconds.
        async with self._turns:
            recent = self._recent_lines(cursor)
            lines = recent if recent is not None else await self._read_lines(cursor)
            await asyncio.sleep(0)
            return _batch(lines, cursor, kinds)

    def _recent_lines(self, cursor: int) -> list[EventLine] | None:
        """The events after ``cursor``; None if some of them are no longer in memory."""
        if not self._window or self._window[0].seq > cursor + 1:
            return None
        # The window has no gap: the distance in seq is the index.
        skip = cursor + 1 - self._window[0].seq
        return [self._window[i] for i in range(skip, len(self._window))]

    async def _read_lines(self, cursor: int) -> list[EventLine]:
        """The next events after ``cursor``, at least one, from the log."""
        try:
            lines = await asyncio.to_thread(self._log_reader.read_after, cursor)
        except OSError as error:
            raise self._unreadable(error) from error
        if not lines:
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the events of job {self.job_id} after {cursor} can no longer be read from disk",
            )
        return lines


def _batch(lines: list[EventLine], cursor: int, kinds: frozenset[str]) -> EventBatch:
    """As many events after ``cursor`` as one batch may have."""
    chosen: list[EventLine] = []
    size = 0
    for line in lines:
        if not kinds or line.kind in kinds:
            size += len(line.raw)
            if chosen and size > BATCH_BYTES:
                break
            chosen.append(line)
        cursor = line.seq
    return EventBatch(chosen, cursor)
