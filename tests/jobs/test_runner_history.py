from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.events.log import EventWriter
from multigrain.events.records import JobError, JobState, LogRecord, LossRecord, StateRecord
from multigrain.jobs.runner import History

Q, S, R, P = JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.STOPPING
FAILED, CANCELLED = JobState.FAILED, JobState.CANCELLED


def history(path: Path, *states: tuple[JobState, int]) -> History:
    with EventWriter(path / "events.jsonl", "job") as writer:
        for state, attempt in states:
            writer.append(StateRecord(state), attempt)
            writer.append(LossRecord(1, 1, 1, 1, 1, 1, 1, 1), attempt)
    return History.read(path / "events.jsonl")


def test_a_job_without_events_is_finished(tmp_path: Path) -> None:
    assert History.read(tmp_path / "events.jsonl").finished
    assert history(tmp_path).finished


@pytest.mark.parametrize(
    ("states", "attempt", "restarts", "lost", "finished"),
    [
        ([(Q, 0)], 0, 0, False, False),
        ([(Q, 0), (S, 1)], 1, 0, True, False),
        ([(Q, 0), (S, 1), (R, 1), (R, 1), (S, 2), (R, 2)], 2, 1, True, False),
        ([(Q, 0), (S, 1), (R, 1), (P, 1)], 1, 0, True, False),
        ([(Q, 0), (S, 1), (FAILED, 1)], 1, 0, False, True),
        ([(Q, 0), (CANCELLED, 0)], 0, 0, False, True),
        # Resumed: restarts are counted from zero again, attempts are not.
        ([(Q, 0), (S, 1), (S, 2), (S, 3), (FAILED, 3), (Q, 3)], 3, 0, False, False),
        ([(Q, 0), (S, 1), (S, 2), (FAILED, 2), (Q, 2), (S, 3), (S, 4)], 4, 1, True, False),
    ],
)
def test_history_counts_attempts_and_restarts(
    tmp_path: Path,
    states: list[tuple[JobState, int]],
    attempt: int,
    restarts: int,
    lost: bool,
    finished: bool,
) -> None:
    found = history(tmp_path, *states)
    assert found.attempt == attempt
    assert found.restarts == restarts
    assert found.lost is lost
    assert found.finished is finished


def test_an_attempt_that_died_while_starting_counts_once(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl", "job") as writer:
        writer.append(StateRecord(Q), 0)
        writer.append(StateRecord(S), 1)
        writer.append(StateRecord(S, "it died", JobError("WORKER_DIED", "x")), 1)
    assert History.read(tmp_path / "events.jsonl").restarts == 0


def test_a_log_message_that_looks_like_a_state_is_ignored(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl", "job") as writer:
        writer.append(StateRecord(Q), 0)
        writer.append(LogRecord("INFO", "x", fields={"state": '{"state":"FAILED"}'}), 0)
    assert History.read(tmp_path / "events.jsonl").state is Q
