"""The lock on a job's event log: whoever writes the log holds it, and nobody else writes.

It is an advisory ``flock``, which the kernel drops when its holder ends in any way: a lock
that is held means a writer that lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import (
    LogRecord,
    LossRecord,
    Record,
    record_from_dict,
    record_to_dict,
)

PROBE_SECONDS = 0.5
"""How long ``lock_exclusive`` keeps trying: a probe by ``is_locked`` holds a shared lock for
some microseconds, and must not look like a second writer."""


class LockHeldError(Exception):
    """Another process holds the lock: it is the writer."""


def lock_exclusive(fd: int, wait_seconds: float = PROBE_SECONDS) -> None:
    """Takes the exclusive lock of an open file.

    Raises:
        LockHeldError: if another open file holds it for all of ``wait_seconds``.
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
    """Whether a writer holds the log. False if the file does not exist.

    Leaves the holder alone: it asks for a shared lock without waiting and gives it back at once.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


# MERGED: ``events.jsonl``, the record of a job: one event a line, ``seq`` 1, 2, 3, ... without
# a gap. A line counts once its newline is there. What a writer that died left behind it, the
# torn last line, is ignored by readers and cut off by the next writer.


CHUNK_BYTES = 1 << 20
_BACKWARD_BYTES = 1 << 16


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
        body: dict[str, Any] = {
            "seq": self.seq,
            "time": self.time,
            "job_id": self.job_id,
            "attempt": self.attempt,
            **record_to_dict(self.record),
        }
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Event:
        """
        Raises:
            ValueError: if the line is not an event.
        """
        try:
            body = json.loads(line)
            record = record_from_dict(body)
            seq, attempt = body["seq"], body["attempt"]
            if type(seq) is not int or type(attempt) is not int:
                raise ValueError("seq and attempt of an event are numbers")
            return cls(seq, body["time"], body["job_id"], attempt, record)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not an event: {error!r}") from error


class EventWriter:
    """Appends to a log, of which it is the only writer while it is open.

    Args:
        path: the log; made if it does not exist.
        job_id: written into every line.

    Raises:
        LockHeldError: if another writer lives.
        MultigrainError: STORAGE, if the last whole line is not an event.
    """

    def __init__(self, path: Path, job_id: str) -> None:
        self._job_id = job_id
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock_exclusive(self._fd)
            self._size, self.last_seq = self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self) -> tuple[int, int]:
        """Cuts off a torn last line; returns the log's size in bytes and its last seq."""
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

        On the disk when it returns, except a loss or a log record, which a crash of the machine
        (not of the process) may lose: they come with every step.

        Raises:
            MultigrainError: STORAGE, if the disk refuses. No reader has then seen the event,
                or (where the disk took it, but would not promise to keep it) it stands.
        """
        line = Event(self.last_seq + 1, utc_now(), self._job_id, attempt, record).encode()
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError("the disk is full: it took a part of a line only")
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise self._refused(error) from error
        self._size += len(line)
        self.last_seq += 1
        if not isinstance(record, LossRecord | LogRecord):
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise self._refused(error) from error
        return self.last_seq

    def _refused(self, error: OSError) -> MultigrainError:
        return MultigrainError(
            ErrorKind.STORAGE,
            f"the event log of job {self._job_id} cannot be written ({error.strerror or error}); "
            "make room on the data directory's disk",
        )

    def close(self) -> None:
        """Gives the lock back."""
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
    """Reads a log from where it stopped last: cheap to ask again and again.

    Args:
        path: the log; it need not exist yet.
        after_seq: only later events are returned.
        offset: bytes to begin at, as ``offset`` of an earlier reader of the same log.
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
        """The next whole lines, about ``max_bytes`` of them at most; [] if there is none.

        Args:
            max_bytes: bounds the memory, not the length of one line.
            keep_line: lines for which it is false are passed over without being decoded.

        Raises:
            MultigrainError: STORAGE, if a whole line is not an event.
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
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        try:
            data = b""
            while b"\n" not in data:
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
    """Every event that is in the log now, after ``after_seq``, in order.

    Raises:
        MultigrainError: STORAGE, if a whole line is not an event.
    """
    reader = EventReader(path, after_seq)
    while events := reader.read(keep_line=keep_line):
        yield from events


def _end_of_line_before(fd: int, end: int) -> int:
    """Offset just behind the last newline in the first ``end`` bytes, 0 if there is none."""
    while end > 0:
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


# MERGED: What a job's log last said of a kind.


R = TypeVar("R", bound=Record)


def newest_record(events: Path, kind: type[R]) -> R | None:
    """The newest record of a kind; None if the log has none, or does not exist.

    Raises:
        MultigrainError: STORAGE, if the log is damaged.
    """
    # Losses are nearly all of a long log: lines of other kinds are not decoded.
    mark = f'"{kind.key}":{{'.encode()
    newest: R | None = None
    for event in read_events(events, keep_line=lambda line: mark in line):
        if isinstance(event.record, kind):
            newest = event.record
    return newest
