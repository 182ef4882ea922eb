"""What a job's log last said of a kind."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from multigrain.events.log import read_events
from multigrain.events.records import Record

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
