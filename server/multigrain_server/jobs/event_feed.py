"""The events of one job, for any number of readers."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator
from pathlib import Path

import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import record_from_dict
from multigrain_server.convert.events import event_message, heartbeat_message
from multigrain_server.jobs.event_reader import EventFile, EventLine
from multigrain_server.jobs.job import JobView

_log = structlog.get_logger(__name__)

WINDOW = 1024
# Of a batch, unless one event alone is larger: far below what a gRPC message may have.
BATCH_BYTES = 1 << 18

EventBatch = list[bytes]
"""Encoded JobEvents, in order."""


class _Entry:
    """An event on its way to subscribers, encoded once for all of them, and only if one asks."""

    __slots__ = ("_encoded", "line")

    def __init__(self, line: EventLine) -> None:
        self.line = line
        self._encoded: bytes | None = None

    def encoded(self) -> bytes:
        """A JobEvent; nothing (and a log line) if the line is damaged."""
        if self._encoded is None:
            try:
                self._encoded = event_message(self.line).SerializeToString()
            except (ValueError, TypeError, KeyError) as error:
                _log.error("event unreadable", seq=self.line.seq, reason=repr(error))
                self._encoded = b""
        return self._encoded


class EventFeed:
    """One reader of the file for all subscribers of a job.

    ``poll`` (called by whoever owns the feed) takes in what was appended and wakes the
    subscribers. Each of them reads at its own pace: the recent events from memory, older ones
    from the file. Nothing is ever dropped, and a slow one holds nobody up.

    Args:
        job_id: the job.
        path: its ``events.jsonl``.
        heartbeat_seconds: a follower hears at least this often.
    """

    def __init__(self, job_id: str, path: Path, heartbeat_seconds: float = 10.0) -> None:
        self.job_id = job_id
        self.view = JobView()
        self.subscribers = 0
        self._file = EventFile(path)
        self._heartbeat_seconds = heartbeat_seconds
        # Filled only while somebody follows; consecutive, and up to the newest event.
        self._window: deque[_Entry] = deque(maxlen=WINDOW)
        self._untold: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._closed: MultigrainError | None = None

    @property
    def last_seq(self) -> int:
        return self._file.last_seq

    @property
    def offset(self) -> int:
        """Bytes of the file taken in."""
        return self._file.offset

    def poll(self, max_chunks: int | None = None) -> Counter[str]:
        """Takes in new events (all there are, or ``max_chunks`` reads of them).

        Returns:
            How many of each kind came since the last call, those that ``catch_up`` took included.
        """
        while (max_chunks is None or max_chunks > 0) and self._take_chunk():
            max_chunks = None if max_chunks is None else max_chunks - 1
        untold, self._untold = self._untold, Counter()
        return untold

    def _take_chunk(self) -> bool:
        """Takes in what one read gives. False if there is nothing new."""
        lines = self._file.read_new()
        if lines:
            self._take(lines)
            self._untold.update(line.kind for line in lines)
            self._wake()
        return bool(lines)

    def _take(self, lines: list[EventLine]) -> None:
        # Each loss point replaces the one before it: only the last one matters to the view, and
        # the last one that tells of a check of the curvature.
        losses = [line for line in reversed(lines) if line.kind == "loss"]
        last_loss = losses[0].seq if losses else 0
        last_check = next((line.seq for line in losses if line.checks_curvature), 0)
        for line in lines:
            if line.kind != "loss" or line.seq in (last_loss, last_check):
                self._fold(line)
            if not self.subscribers:
                continue
            if self._window and self._window[-1].line.seq + 1 != line.seq:
                self._window.clear()
            self._window.append(_Entry(line))
        self.view.last_seq = self.last_seq
        if not self.subscribers:
            self._window.clear()

    def _fold(self, line: EventLine) -> None:
        try:
            data = line.decode()
            record = record_from_dict(data)
            self.view.apply(line.seq, data["time"], int(data["attempt"]), record)
        except (ValueError, TypeError, KeyError) as error:
            # A record of a newer writer: it is streamed as far as the contract knows it.
            _log.warning("event not understood", job_id=self.job_id, reason=repr(error))

    async def catch_up(self) -> None:
        """Takes in a file of any length without holding up the event loop."""
        while self._take_chunk():  # noqa: ASYNC110 - gives way, waits for nothing
            await asyncio.sleep(0)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self, reason: MultigrainError) -> None:
        """Ends every stream with an error (the server stops, or the job was deleted)."""
        self._closed = reason
        self._wake()

    async def batches(
        self, after_seq: int, kinds: frozenset[str], follow: bool
    ) -> AsyncGenerator[EventBatch, None]:
        """Events with a greater seq, of the given kinds (empty: all), once and in order.

        A batch is what has happened since the one before it, of at most BATCH_BYTES or so: a
        reader that is behind gets large ones. Each event is an encoded JobEvent.

        Ends when the job is in a terminal state and all was sent, or (``follow`` false) when
        all that is there was sent.

        Raises:
            MultigrainError: INVALID_FIELD for an ``after_seq`` beyond the newest event, and
                whatever ``close`` was given.
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
            quiet_since = now()
            while True:
                # Taken before the look at last_seq, so that no wake-up is lost in between.
                changed = self._changed
                if self._closed is not None:
                    raise self._closed
                if cursor < self.last_seq:
                    batch, cursor = self._batch(cursor, kinds)
                    if batch:
                        yield batch
                        quiet_since = now()
                    # Give others a turn, also when all of it was filtered out.
                    await asyncio.sleep(0)
                    continue
                if not follow or self.view.state.terminal:
                    return
                try:
                    async with asyncio.timeout_at(quiet_since + self._heartbeat_seconds):
                        await changed.wait()
                except TimeoutError:
                    heartbeat = heartbeat_message(self.job_id, self.view.attempt, cursor)
                    yield [heartbeat.SerializeToString()]
                    quiet_since = now()
        finally:
            self.subscribers -= 1

    def _batch(self, cursor: int, kinds: frozenset[str]) -> tuple[list[bytes], int]:
        """What to send next, and the seq up to which that is everything."""
        batch: list[bytes] = []
        size = 0
        for entry in self._after(cursor):
            if not kinds or entry.line.kind in kinds:
                encoded = entry.encoded()
                size += len(encoded)
                if batch and size > BATCH_BYTES:
                    break
                if encoded:
                    batch.append(encoded)
            cursor = entry.line.seq
        return batch, cursor

    def _after(self, cursor: int) -> list[_Entry]:
        """The next events after ``cursor``: at least one, if there is a readable one."""
        if self._window and self._window[0].line.seq <= cursor + 1:
            # seq has no gap, so that the distance is the index.
            skip = cursor + 1 - self._window[0].line.seq
            return [self._window[i] for i in range(skip, len(self._window))]
        lines = self._file.read_after(cursor)
        if not lines:
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the events of job {self.job_id} after {cursor} can no longer be read from disk",
            )
        return [_Entry(line) for line in lines]
