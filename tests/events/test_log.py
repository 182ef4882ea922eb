from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventReader, EventWriter, LockHeldError, read_events
from multigrain.events.records import (
    EvaluationRecord,
    JobError,
    JobState,
    LogRecord,
    LossRecord,
    Record,
    StateRecord,
)

QUEUED = StateRecord(JobState.QUEUED, "waiting")


def loss(step: int) -> LossRecord:
    return LossRecord(step, 100, 1, 2, 0.5, 0.25, 0.75, 0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def write(path: Path, *steps: int) -> None:
    with EventWriter(path, "job") as writer:
        for step in steps:
            writer.append(loss(step), 1)


def test_an_event_is_read_as_it_was_written(path: Path) -> None:
    error = JobError("WORKER_DIED", "rank 1 died", rank=1, signal=9, log_tail="a\nb\n")
    records: list[Record] = [
        QUEUED,
        loss(1),
        StateRecord(JobState.FAILED, "dead", error, 137),
        LogRecord("INFO", "ü\n"),
    ]
    with EventWriter(path, "job") as writer:
        seqs = [writer.append(record, 3) for record in records]
    events = list(read_events(path))
    assert seqs == [1, 2, 3, 4]
    assert [event.record for event in events] == records
    assert [event.seq for event in events] == seqs
    assert {(event.job_id, event.attempt) for event in events} == {("job", 3)}


def test_a_line_is_one_json_object_with_an_rfc_3339_time(path: Path) -> None:
    write(path, 1)
    (line,) = path.read_text().splitlines()
    body = json.loads(line)
    assert list(body) == ["seq", "time", "job_id", "attempt", "loss"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", body["time"])


def test_fields_without_a_value_are_left_out(path: Path) -> None:
    with EventWriter(path, "job") as writer:
        writer.append(QUEUED, 0)
    assert json.loads(path.read_text())["state"] == {"state": "QUEUED", "message": "waiting"}


def test_a_new_writer_continues_the_sequence_without_a_gap(path: Path) -> None:
    write(path, 1, 2)
    write(path, 3)
    assert [event.seq for event in read_events(path)] == [1, 2, 3]


def test_a_line_longer_than_the_buffer_is_read(path: Path) -> None:
    with EventWriter(path, "job") as writer:
        writer.append(QUEUED, 0)
        writer.append(LogRecord("INFO", "x" * 300_000), 1)
    with EventWriter(path, "job") as writer:
        assert writer.append(QUEUED, 1) == 3
    assert [event.seq for event in EventReader(path).read(max_bytes=1000)] == [1]


def test_an_incomplete_line_is_ignored_and_then_replaced(path: Path) -> None:
    write(path, 1, 2)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert [event.seq for event in read_events(path)] == [1]
        write(path, 9)
        events = list(read_events(path))
        assert [(e.seq, e.record) for e in events] == [(1, loss(1)), (2, loss(9))]


def test_a_log_with_an_incomplete_first_line_restarts_at_one(path: Path) -> None:
    path.write_bytes(b'{"seq":1,"ti')
    write(path, 1)
    assert [event.seq for event in read_events(path)] == [1]


def test_a_second_writer_is_refused_until_the_first_has_closed(path: Path) -> None:
    with EventWriter(path, "job"), pytest.raises(LockHeldError):
        EventWriter(path, "job")
    EventWriter(path, "job").close()


def test_a_reader_returns_complete_lines_only(path: Path) -> None:
    write(path, 1)
    line = path.read_bytes()
    path.write_bytes(b"")
    reader = EventReader(path)
    with open(path, "ab", buffering=0) as file:
        for byte in line[:-1]:
            file.write(bytes([byte]))
            assert reader.read() == []
        file.write(b"\n")
    assert [event.seq for event in reader.read()] == [1]
    assert reader.read() == []


def test_a_reader_continues_where_it_or_another_reader_ended(path: Path) -> None:
    reader = EventReader(path)
    assert reader.read() == []
    write(path, 1, 2)
    assert [event.seq for event in reader.read()] == [1, 2]
    write(path, 3)
    other = EventReader(path, offset=reader.offset)
    assert [event.seq for event in other.read()] == [3]
    assert [event.seq for event in reader.read()] == [3]


def test_a_reader_with_a_small_buffer_misses_no_event(path: Path) -> None:
    write(path, *range(50))
    reader = EventReader(path)
    seqs: list[int] = []
    while events := reader.read(max_bytes=64):
        seqs += [event.seq for event in events]
    assert seqs == list(range(1, 51))


def test_events_up_to_after_seq_are_skipped(path: Path) -> None:
    write(path, *range(5))
    assert [event.seq for event in read_events(path, 3)] == [4, 5]
    assert list(read_events(path, 5)) == []


def test_a_complete_line_that_is_not_an_event_is_an_error_for_reader_and_writer(path: Path) -> None:
    path.write_bytes(b"rubbish\n")
    for read in (lambda: list(read_events(path)), lambda: EventWriter(path, "job")):
        with pytest.raises(MultigrainError) as caught:
            read()
        assert caught.value.kind is ErrorKind.STORAGE


def test_a_write_to_a_full_disk_leaves_no_partial_line_and_no_gap(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, 1)
    real = os.write
    with EventWriter(path, "job") as writer:
        writer.append(loss(2), 1)  # an event of this writer must survive too
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
        with pytest.raises(MultigrainError) as caught:
            writer.append(loss(3), 1)
        assert caught.value.kind is ErrorKind.STORAGE
        monkeypatch.undo()
        writer.append(loss(4), 1)
    events = [(e.seq, e.record) for e in read_events(path)]
    assert events == [(1, loss(1)), (2, loss(2)), (3, loss(4))]


def test_losses_are_not_synced_but_states_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with EventWriter(path, "job") as writer:
        writer.append(loss(1), 1)
        assert not synced
        writer.append(QUEUED, 1)
        assert len(synced) == 1


def test_non_finite_numbers_are_valid_json_and_read_back(path: Path) -> None:
    skipped = LossRecord(
        step=1,
        total_steps=2,
        epoch=1,
        total_epochs=1,
        loss=math.nan,
        classification_loss=math.inf,
        instance_loss=-math.inf,
        learning_rate=0.1,
        skipped=True,
    )
    with EventWriter(path, "job") as writer:
        writer.append(skipped, 1)
        writer.append(EvaluationRecord(metrics={"loss": math.nan, "top1": 0.5}), 1)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    loss, figures = [event.record for event in read_events(path)]
    assert isinstance(loss, LossRecord)
    assert math.isnan(loss.loss)
    assert (loss.classification_loss, loss.instance_loss) == (math.inf, -math.inf)
    assert isinstance(figures, EvaluationRecord)
    assert math.isnan(figures.metrics["loss"])
    assert figures.metrics["top1"] == 0.5


def test_text_that_utf8_cannot_encode_is_escaped(path: Path) -> None:
    # Python reads a file name that is not UTF-8 as text with unpaired surrogates.
    name = os.fsdecode(b"caf\xe9.jpg")
    record = LogRecord("WARNING", f"{name} is unreadable", fields={name: "é"})
    with EventWriter(path, "job") as writer:
        writer.append(record, 1)
    (event,) = read_events(path)
    escaped = r"caf\udce9.jpg"
    assert event.record == LogRecord("WARNING", rf"{escaped} is unreadable", fields={escaped: "é"})
