"""What the event log says of a job's attempts so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multigrain.events.log import read_events
from multigrain.events.records import JobState, StateRecord

_STATE_MARK = b'"state":{"state":'


@dataclass(frozen=True)
class History:
    """State of a job by its log.

    Attributes:
        state: the newest; None if the log holds none.
        attempt: number of the newest attempt, 0 if there was none.
        started: attempts since the job was last queued (submitted or resumed).
    """

    state: JobState | None = None
    attempt: int = 0
    started: int = 0

    @property
    def restarts(self) -> int:
        """Restarts used since the job was last queued."""
        return max(0, self.started - 1)

    @property
    def finished(self) -> bool:
        return self.state is None or self.state.terminal

    @property
    def lost(self) -> bool:
        """An attempt was begun and its end was not recorded."""
        return self.state is not None and not self.state.terminal and self.started > 0

    @classmethod
    def read(cls, events: Path) -> History:
        """
        Raises:
            MultigrainError: STORAGE, if the log is damaged.
        """
        state: JobState | None = None
        attempt = 0
        attempts: set[int] = set()
        # Losses are nearly all of a long log: their lines are not decoded.
        for event in read_events(events, keep_line=lambda line: _STATE_MARK in line):
            if not isinstance(event.record, StateRecord):
                continue
            state = event.record.state
            attempt = max(attempt, event.attempt)
            if state is JobState.QUEUED:
                attempts = set()
            elif state is JobState.STARTING:
                attempts.add(event.attempt)
        return cls(state, attempt, len(attempts))
