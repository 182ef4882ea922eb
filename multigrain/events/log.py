"""The event log of a job, ``events.jsonl``: its writer, its readers and its lock.

One event per line, with consecutive ``seq`` 1, 2, 3, ... A line counts once its newline is
written. Readers ignore an incomplete last line, which a writer that was killed may leave; the next
writer truncates it.

The writer holds an exclusive ``flock``, which the kernel releases however the process ends: a log
is locked exactly while it has a live writer.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import (
    LogRecord,
    LossRecord,
    Record,
    encode_json,
    record_fields,
    record_from_dict,
)
from multigrain.files import open_descriptor, open_to_write

LOCK_WAIT_SECONDS = 0.5
"""How long ``lock_exclusive`` retries: ``is_locked`` takes a shared lock for microseconds, which
must not look like a second writer."""

MAX_LINE_BYTES = 16 << 20
"""Longest line; ordinary ones have less than 1 MiB. A log without newlines is not read whole."""

CHUNK_BYTES = 1 << 20
_BACKWARD_BYTES = 1 << 16
R = TypeVar("R", bound=Record)


class LockHeldError(Exception):
    """Another process is the log's writer."""


def lock_exclusive(fd: int, wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
    """Takes the exclusive lock of an open file.

    Raises:
        LockHeldError: if another process still holds it after ``wait_seconds``.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockHeldError from None
        time.sleep(0.005)


def is_locked(path: Path) -> bool:
    """Whether the log has a writer. False if the file does not exist.

    Does not disturb the writer: takes a shared lock without waiting and releases it at once.

    Raises:
        OSError: if it cannot be opened, or is no regular file.
    """
    try:
        fd = open_descriptor(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def utc_now() -> str:
    """The time now, RFC 3339 in UTC with microseconds: ``2026-01-31T12:00:00.123456Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Event:
    """One line of the log. ``time`` is RFC 3339 in UTC with microseconds."""

    seq: int
    time: str
    job_id: str
    attempt: int
    record: Record

    def encode(self) -> bytes:
        """The line, with its newline."""
        return encode_json(
            {
                "seq": self.seq,
                "time": self.time,
                "job_id": self.job_id,
                "attempt": self.attempt,
                self.record.key: record_fields(self.record),
            }
        )

    @classmethod
    def decode(cls, line: bytes) -> Event:
        """Reads a line.

        Raises:
            ValueError: if it is not an event.
        """
        try:
            body = msgspec.json.decode(line, type=dict)
            record = record_from_dict(body)
            seq, attempt = body["seq"], body["attempt"]
            if type(seq) is not int or type(attempt) is not int:
                raise ValueError("seq and attempt of an event must be integers")
            if type(body["time"]) is not str or type(body["job_id"]) is not str:
                raise ValueError("time and job_id of an event must be strings")
            return cls(seq, body["time"], body["job_id"], attempt, record)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not an event: {error!r}") from error


class EventWriter:
    """Appends to a log; its only writer until it is closed.

    Args:
        path: the log; created if it does not exist.
        job_id: written into every line.

    Raises:
        LockHeldError: if the log has another writer.
        MultigrainError: STORAGE, if the last complete line is not an event.
        OSError: if the log cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path, job_id: str) -> None:
        self._job_id = job_id
        self._fd = open_to_write(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            lock_exclusive(self._fd)
            self._size, self.last_seq = self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self) -> tuple[int, int]:
        """Truncates an incomplete last line; returns the log's size in bytes and its last seq."""
        size = os.fstat(self._fd).st_size
        whole = _end_of_line_before(self._fd, size)
        if whole < size:
            os.ftruncate(self._fd, whole)
        if whole == 0:
            return 0, 0
        start = _end_of_line_before(self._fd, whole - 1)
        try:
            return whole, Event.decode(os.pread(self._fd, whole - start, start)).seq
        except ValueError as error:
            raise _damaged(start) from error

    def append(self, record: Record, attempt: int) -> int:
        """Writes one event in one call of ``write`` and returns its seq.

        The event is durable when it returns, except losses and log records: every step has them,
        and a crash of the machine (not of the process) may lose the last ones.

        Raises:
            MultigrainError: STORAGE, if the write fails, and the log is unchanged; or if only the
                sync fails, and ``last_seq`` has been incremented.
        """
        line = Event(self.last_seq + 1, utc_now(), self._job_id, attempt, record).encode()
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError("the disk is full: only a part of the line was written")
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise self._storage_error(error) from error
        self._size += len(line)
        self.last_seq += 1
        if not isinstance(record, LossRecord | LogRecord):
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise self._storage_error(error) from error
        return self.last_seq

    def _storage_error(self, error: OSError) -> MultigrainError:
        return MultigrainError(
            ErrorKind.STORAGE,
            f"cannot write the event log of job {self._job_id} ({error.strerror or error}); "
            "free space on the data directory's disk",
        )

    def close(self) -> None:
        """Releases the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EventReader:
    """Reads a log incrementally: each read continues where the last one ended.

    Args:
        path: the log; it need not exist yet.
        after_seq: only later events are returned.
        offset: byte to start at: the ``offset`` of an earlier reader of the same log.
    """

    def __init__(self, path: Path, after_seq: int = 0, offset: int = 0) -> None:
        self._path = path
        self._after_seq = after_seq
        self.offset = offset

    def read(
        self,
        max_bytes: int = CHUNK_BYTES,
        keep_line: Callable[[bytes], bool] | None = None,
    ) -> list[Event]:
        """The events of the next complete lines; [] if there are none.

        Args:
            max_bytes: read at a time; a longer line is read whole.
            keep_line: lines for which it returns False are skipped without being decoded.

        Raises:
            MultigrainError: STORAGE, if the log cannot be read, or a complete line is not an event.
        """
        events: list[Event] = []
        while not events:
            lines = self._next_lines(max_bytes)
            if not lines:
                return events
            for line in lines:
                start, self.offset = self.offset, self.offset + len(line)
                if keep_line is not None and not keep_line(line):
                    continue
                try:
                    event = Event.decode(line)
                except ValueError as error:
                    self.offset = start
                    raise _damaged(start) from error
                if event.seq > self._after_seq:
                    self._after_seq = event.seq
                    events.append(event)
        return events

    def _next_lines(self, max_bytes: int) -> list[bytes]:
        try:
            fd = open_descriptor(self._path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the event log cannot be read ({error.strerror}); restore the file, or delete "
                "the job",
            ) from error
        try:
            data = b""
            while b"\n" not in data:
                if len(data) > MAX_LINE_BYTES:
                    raise _damaged(self.offset)
                more = os.pread(fd, max_bytes, self.offset + len(data))
                if not more:
                    return []
                data += more
        finally:
            os.close(fd)
        return data[: data.rindex(b"\n") + 1].splitlines(keepends=True)


def read_events(
    path: Path,
    after_seq: int = 0,
    *,
    keep_line: Callable[[bytes], bool] | None = None,
) -> Iterator[Event]:
    """Yields every event that the log has now, in order.

    Args:
        path: the log; it need not exist.
        after_seq: only later events are returned.
        keep_line: as in ``EventReader.read``.

    Raises:
        MultigrainError: STORAGE, if a complete line is not an event.
    """
    reader = EventReader(path, after_seq)
    while events := reader.read(keep_line=keep_line):
        yield from events


def newest_record(events: Path, kind: type[R]) -> R | None:
    """The latest record of a kind; None if the log has none or does not exist.

    Raises:
        MultigrainError: STORAGE, if the log is damaged.
    """
    # Most lines of a long log are losses: lines of other kinds are not decoded.
    mark = f'"{kind.key}":{{'.encode()
    newest: R | None = None
    for event in read_events(events, keep_line=lambda line: mark in line):
        if isinstance(event.record, kind):
            newest = event.record
    return newest


def _end_of_line_before(fd: int, end: int) -> int:
    """Offset after the last newline in the first ``end`` bytes; 0 if there is none.

    Raises:
        MultigrainError: STORAGE, if the line is too long.
    """
    first = end - MAX_LINE_BYTES
    while end > 0:
        if end < first:
            raise _damaged(end)
        start = max(0, end - _BACKWARD_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _damaged(offset: int) -> MultigrainError:
    return MultigrainError(
        ErrorKind.STORAGE,
        f"the event log is damaged: the line at byte {offset} is not an event; "
        "restore the file, or delete the job",
    )
