"""The loss curve of a job, from a bounded part of its record."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from multigrain.events.records import LossRecord
from multigrain_server.jobs.event_feed import EventLine, parse_line

POINTS = 160
# A loss line has some 500 bytes: a window holds at least one wherever it begins.
_WINDOW_BYTES = 2048
_KEPT = 128


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One step's loss and its terms; not a number where the step had none."""

    attempt: int
    step: int
    loss: float
    classification: float
    instance: float


class Curves:
    """Curves of jobs, each read again only when its record has grown.

    A record of any length costs at most POINTS short reads: it is looked into at places evenly
    far apart, of which the last is its end.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[int, tuple[CurvePoint, ...]]] = OrderedDict()

    def of(self, path: Path) -> tuple[CurvePoint, ...]:
        """The curve in an ``events.jsonl``; empty if it has none, or cannot be read."""
        try:
            size = path.stat().st_size
            known = self._known.get(path)
            if known is None or known[0] != size:
                known = size, _read(path, size)
        except OSError:
            return ()
        self._known[path] = known
        self._known.move_to_end(path)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return known[1]


def _read(path: Path, size: int) -> tuple[CurvePoint, ...]:
    if size <= POINTS * _WINDOW_BYTES:
        lines = _losses(path.read_bytes()[:size], whole=True)
        apart = max(1, math.ceil(len(lines) / POINTS))
        # Counted from the newest, which is always shown.
        chosen = lines[::-1][::apart][::-1]
    else:
        chosen = []
        file = os.open(path, os.O_RDONLY)
        try:
            for number in range(POINTS):
                start = (size - _WINDOW_BYTES) * number // (POINTS - 1)
                found = _losses(os.pread(file, _WINDOW_BYTES, start), whole=start == 0)
                chosen += found[-1:]
        finally:
            os.close(file)
    return _newest_attempts(chosen)


def _losses(data: bytes, *, whole: bool) -> list[EventLine]:
    """The loss lines that lie in ``data`` from their beginning (``whole``: of the first line
    too) to their end."""
    parts = data.split(b"\n")[:-1] if whole else data.split(b"\n")[1:-1]
    return [
        line
        for raw in parts
        if b'"loss":{' in raw and (line := parse_line(raw)) is not None and line.kind == "loss"
    ]


def _newest_attempts(lines: list[EventLine]) -> tuple[CurvePoint, ...]:
    """Points in order of steps: where an attempt went over steps again, the newest counts."""
    points: list[CurvePoint] = []
    for line in lines:
        try:
            event = line.event()
        except (ValueError, TypeError, KeyError):
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
            )
        )
    return tuple(points)
