"""The runner when the disk is full or fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventWriter, read_events
from multigrain.events.records import JobState, LogRecord, LossRecord, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.limits import RunnerLimits, StopSignal
from multigrain.jobs.runner import Runner

LOSS = LossRecord(1, 1, 1, 1, 1, 1, 1, 1)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Callable[[float], Runner]]:
    """Creates a runner with a storage timeout."""
    folder = JobFolder(tmp_path)
    writer = EventWriter(folder.events, "job")
    writer.append(StateRecord(JobState.QUEUED), 0)

    def make(patience: float) -> Runner:
        limits = RunnerLimits(storage_timeout_seconds=patience, storage_retry_seconds=0.01)
        return Runner(folder, writer, limits, StopSignal())

    yield make
    writer.close()


def test_a_record_waits_for_disk_space_and_is_not_lost(
    runner: Callable[[float], Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = os.write, [28, 28, 28]

    def write(fd: int, data: bytes) -> int:
        if refusals:
            raise OSError(refusals.pop(), "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    runner(0.0).store(LOSS)  # the timeout is for a failing disk, not for a full one
    said, stored = [event.record for event in read_events(tmp_path / "events.jsonl", 1)]
    assert isinstance(said, LogRecord)
    assert "was not writable" in said.message
    assert stored == LOSS


def test_the_runner_exits_if_the_disk_keeps_failing(
    runner: Callable[[float], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(MultigrainError, match="Input/output error") as caught:
        runner(0.05).store(LOSS)
    assert caught.value.kind is ErrorKind.STORAGE


def test_a_record_that_was_written_but_not_synced_is_not_written_twice(
    runner: Callable[[float], Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, refusals = runner(10.0), [5]
    real = os.fdatasync

    def sync(fd: int) -> None:
        if refusals:
            raise OSError(refusals.pop(), "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    running = StateRecord(JobState.RUNNING)
    made.store(running)
    made.store(LOSS)
    assert [event.record for event in read_events(tmp_path / "events.jsonl", 1)] == [running, LOSS]
