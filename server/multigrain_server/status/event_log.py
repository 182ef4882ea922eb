"""The loss curve and the latest warnings of a job, from a bounded part of its event log."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from multigrain.events.records import EvaluationRecord, LogRecord, LossRecord
from multigrain.files import open_descriptor, open_regular, read_tail
from multigrain_server.jobs.event_feed import EventLine, parse_line

POINTS = 160
# A loss line has about 500 bytes, so a window holds at least one wherever it begins.
_WINDOW_BYTES = 2048
_CACHED_CURVES = 128
_TAIL_BYTES = 256 * 1024
_MAX_WARNINGS = 20
_SCAN_BYTES = 256 << 20
_SCAN_CHUNK = 256 << 10
_MAX_EVALUATIONS = 1000
_LEVELS = ("WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The loss of a step and its terms; NaN where the step had none."""

    attempt: int
    step: int
    loss: float
    classification: float
    instance: float
    learning_rate: float = math.nan
    epoch: int = 0


class Curves:
    """The loss curves of jobs, each read again only when its event log has grown.

    A long log costs POINTS short reads at evenly spaced places, of which the last is its end.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[int, tuple[CurvePoint, ...]]] = OrderedDict()

    def of(self, path: Path) -> tuple[CurvePoint, ...]:
        """The curve of an ``events.jsonl``; empty if it has none or cannot be read."""
        try:
            size = path.stat().st_size
            known = self._known.get(path)
            if known is None or known[0] != size:
                known = size, _read(path, size)
        except OSError:
            return ()
        self._known[path] = known
        self._known.move_to_end(path)
        while len(self._known) > _CACHED_CURVES:
            self._known.popitem(last=False)
        return known[1]


class Evaluations:
    """The scheduled evaluations of jobs. Of an event log, only what is new is read again."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[int, tuple[EvaluationRecord, ...]]] = OrderedDict()

    def of(self, path: Path) -> tuple[EvaluationRecord, ...]:
        """In the order of steps, of a step the newest; of a very long log, the last ones."""
        offset, found = self._known.get(path, (0, ()))
        try:
            with open_regular(path) as log:
                size = os.fstat(log.fileno()).st_size
                if size < offset:
                    offset, found = 0, ()
                log.seek(max(offset, size - _SCAN_BYTES))
                whole = log.tell() == offset
                by_step = {record.step: record for record in found}
                offset = log.tell()
                rest = b""
                while data := log.read(_SCAN_CHUNK):
                    *lines, rest = (rest + data).split(b"\n")
                    for raw in lines:
                        record = _evaluation(raw, path.parent.name) if whole else None
                        whole = True
                        offset += len(raw) + 1
                        if record is not None:
                            by_step = {s: r for s, r in by_step.items() if s < record.step}
                            by_step[record.step] = record
        except OSError:
            return ()
        found = tuple(by_step.values())[-_MAX_EVALUATIONS:]
        self._known[path] = offset, found
        self._known.move_to_end(path)
        while len(self._known) > _CACHED_CURVES:
            self._known.popitem(last=False)
        return found


def _evaluation(raw: bytes, job_id: str) -> EvaluationRecord | None:
    line = parse_line(raw, job_id) if b'"evaluation":{' in raw else None
    if line is None or line.kind != "evaluation":
        return None
    try:
        record = line.event().record
    except ValueError:
        return None
    return record if isinstance(record, EvaluationRecord) else None


@dataclass(frozen=True)
class Message:
    """A log event; ``time`` as the event has it (RFC 3339, UTC), ``rank`` -1 = the runner."""

    time: str
    level: str
    rank: int
    text: str


def latest_warnings(path: Path) -> tuple[Message, ...]:
    """Warnings and errors in the last 256 KiB of an ``events.jsonl``, newest first."""
    try:
        data, start = read_tail(path, _TAIL_BYTES)
    except OSError:
        return ()
    lines = data.split(b"\n")
    found: list[Message] = []
    # The first line may be cut off, and what follows the last newline is not complete yet.
    for raw in reversed(lines[1:-1] if start else lines[:-1]):
        if len(found) == _MAX_WARNINGS:
            break
        line = parse_line(raw, path.parent.name) if b'"log":' in raw else None
        if line is None or line.kind != "log":
            continue
        try:
            event = line.event()
        except ValueError:
            continue
        record = event.record
        if isinstance(record, LogRecord) and record.level in _LEVELS:
            found.append(Message(event.time, record.level, record.rank, record.message))
    return tuple(found)


def _read(path: Path, size: int) -> tuple[CurvePoint, ...]:
    if size <= POINTS * _WINDOW_BYTES:
        with open_regular(path) as log:
            lines = _losses(log.read(size), path.parent.name, whole=True)
        stride = max(1, math.ceil(len(lines) / POINTS))
        # From the end: the newest is always shown.
        chosen = lines[::-1][::stride][::-1]
    else:
        chosen = []
        file = open_descriptor(path)
        try:
            for number in range(POINTS):
                start = (size - _WINDOW_BYTES) * number // (POINTS - 1)
                data = os.pread(file, _WINDOW_BYTES, start)
                found = _losses(data, path.parent.name, whole=start == 0)
                chosen += found[-1:]
        finally:
            os.close(file)
    return _newest_attempts(chosen)


def _losses(data: bytes, job_id: str, *, whole: bool) -> list[EventLine]:
    """The complete loss lines in ``data``; ``whole`` = it begins at the beginning of a line."""
    parts = data.split(b"\n")[:-1] if whole else data.split(b"\n")[1:-1]
    read = (parse_line(raw, job_id) for raw in parts if b'"loss":{' in raw)
    return [line for line in read if line is not None and line.kind == "loss"]


def _newest_attempts(lines: list[EventLine]) -> tuple[CurvePoint, ...]:
    """Points in the order of steps; of a step that several attempts computed, the last one's."""
    points: list[CurvePoint] = []
    for line in lines:
        try:
            event = line.event()
        except ValueError:
            continue
        record = event.record
        if not isinstance(record, LossRecord):
            continue
        if points and points[-1].step >= record.step:
            del points[bisect_left(points, record.step, key=lambda point: point.step) :]
        points.append(
            CurvePoint(
                event.attempt,
                record.step,
                float(record.loss),
                float(record.classification_loss),
                float(record.instance_loss),
                float(record.learning_rate),
                record.epoch,
            )
        )
    return tuple(points)
