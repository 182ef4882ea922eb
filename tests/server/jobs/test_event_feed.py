"""Every event once, in order, from any point, to any number of subscribers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventWriter
from multigrain.events.records import JobError, JobState, LogRecord, StateRecord
from multigrain.v1.job_pb2 import JobEvent
from multigrain_server.convert.events import encode_events, heartbeat_message
from multigrain_server.jobs import event_feed
from multigrain_server.jobs.event_feed import EventFeed, EventLogReader
from tests.server.jobs.fake_runner import loss

ALL: frozenset[str] = frozenset()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def _write(path: Path, losses: int, end: JobState | None = JobState.SUCCEEDED) -> None:
    with EventWriter(path, "job-1") as writer:
        writer.append(StateRecord(JobState.RUNNING), 1)
        for step in range(1, losses + 1):
            writer.append(loss(step, losses), 1)
        if end is not None:
            writer.append(StateRecord(end), 1)


async def _stream(
    feed: EventFeed, after: int = 0, kinds: frozenset[str] = ALL, follow: bool = True
) -> AsyncGenerator[JobEvent, None]:
    async with aclosing(feed.batches(after, kinds, follow)) as batches:
        async for batch in batches:
            if not batch.lines:
                yield heartbeat_message(feed.job_id, feed.view.attempt, batch.last_seq)
            for event in encode_events(batch.lines):
                yield JobEvent.FromString(event)


async def _all(feed: EventFeed, after: int = 0, follow: bool = True) -> list[JobEvent]:
    return [event async for event in _stream(feed, after, ALL, follow)]


async def test_an_ended_job_is_read_from_any_point(path: Path) -> None:
    _write(path, 300)
    feed = EventFeed("job-1", path)
    for after in (0, 1, 63, 64, 65, 128, 301, 302):
        seqs = [event.seq for event in await _all(feed, after)]
        assert seqs == list(range(after + 1, 303))


async def test_after_seq_beyond_the_newest_event_is_refused(path: Path) -> None:
    _write(path, 3)
    with pytest.raises(MultigrainError, match=r"after_seq: 6 is beyond .* 5") as caught:
        await _all(EventFeed("job-1", path), 6)
    assert caught.value.kind is ErrorKind.INVALID_FIELD


async def test_kinds_filter_the_stream(path: Path) -> None:
    _write(path, 10)
    feed = EventFeed("job-1", path)
    events = [event async for event in _stream(feed, 0, frozenset({"state"}))]
    assert [event.seq for event in events] == [1, 12]


async def test_without_follow_the_stream_of_a_running_job_ends(
    path: Path,
) -> None:
    _write(path, 10, end=None)
    assert len(await _all(EventFeed("job-1", path), follow=False)) == 11


async def test_a_subscriber_that_is_behind_receives_large_batches_up_to_the_limit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(path, 3000)
    monkeypatch.setattr(event_feed, "BATCH_BYTES", 9000)
    with EventWriter(path, "job-1") as writer:
        writer.append(LogRecord("INFO", "x" * 10_000), 1)
        writer.append(StateRecord(JobState.SUCCEEDED), 2)
    batches = [batch.lines async for batch in EventFeed("job-1", path).batches(0, ALL, True)]
    assert max(len(batch) for batch in batches) > 5
    sizes = [sum(len(line.raw) for line in batch) for batch in batches]
    assert all(len(batch) == 1 or size <= 9000 for batch, size in zip(batches, sizes, strict=True))
    # What is sent is smaller still.
    sent = [sum(map(len, encode_events(batch))) for batch in batches]
    assert all(encoded < raw for encoded, raw in zip(sent, sizes, strict=True))
    events = [line.seq for batch in batches for line in batch]
    assert events == list(range(1, 3005))


def test_an_incomplete_line_is_returned_once_it_is_complete(path: Path) -> None:
    _write(path, 2, end=None)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    file = EventLogReader(path)
    assert [line.seq for line in file.read_new()] == [1, 2]
    assert file.read_new() == []
    path.write_bytes(whole)
    assert [line.seq for line in file.read_new()] == [3]


def test_an_incomplete_line_may_be_replaced(path: Path) -> None:
    _write(path, 1, end=None)
    with path.open("ab") as file:
        file.write(b'{"seq":3,"torn')
    log = EventLogReader(path)
    assert len(log.read_new()) == 2
    with EventWriter(path, "job-1") as writer:
        writer.append(LogRecord("INFO", "line\nwith a break"), 1)
    (line,) = log.read_new()
    assert (line.seq, line.fields()["log"]["message"]) == (3, "line\nwith a break")


def test_an_event_with_a_seq_that_was_read_before_is_skipped(path: Path) -> None:
    _write(path, 2, end=None)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[0], lines[1], lines[2]]))
    log = EventLogReader(path)
    with capture_logs() as logs:
        assert [line.seq for line in log.read_new()] == [1, 2, 3]
    assert log.last_seq == 3
    assert {(line["event"], line["job_id"]) for line in logs} == {
        ("event out of order", path.parent.name)
    }


def test_a_line_that_is_no_event_is_logged_with_its_job(path: Path) -> None:
    path.write_bytes(b"nonsense\n")
    with capture_logs() as logs:
        assert EventLogReader(path).read_new() == []
    assert [(line["event"], line["job_id"]) for line in logs] == [
        ("event line unreadable", path.parent.name)
    ]


async def test_heartbeats_carry_the_newest_seq(path: Path) -> None:
    _write(path, 2, end=None)
    feed = EventFeed("job-1", path, heartbeat_seconds=0.05)
    stream = _stream(feed, 3)
    beats = [await anext(stream) for _ in range(2)]
    await stream.aclose()
    assert [(beat.WhichOneof("event"), beat.seq) for beat in beats] == [("heartbeat", 3)] * 2


async def test_a_stream_ends_with_the_job_and_follows_a_resumed_one(
    path: Path,
) -> None:
    _write(path, 1, end=JobState.FAILED)
    feed = EventFeed("job-1", path)
    assert [event.seq for event in await _all(feed)] == [1, 2, 3]
    with EventWriter(path, "job-1") as writer:
        writer.append(StateRecord(JobState.QUEUED), 1)
    feed.poll()
    later = asyncio.create_task(_all(feed, 3))
    whole = asyncio.create_task(_all(feed, 0))
    await asyncio.sleep(0.05)
    assert not later.done()
    with EventWriter(path, "job-1") as writer:
        writer.append(StateRecord(JobState.SUCCEEDED), 2)
    feed.poll()
    assert [event.seq for event in await later] == [4, 5]
    assert [event.seq for event in await whole] == [1, 2, 3, 4, 5]


async def test_closing_a_feed_ends_its_streams_with_the_reason(path: Path) -> None:
    _write(path, 2, end=None)
    feed = EventFeed("job-1", path)
    task = asyncio.create_task(_all(feed))
    await asyncio.sleep(0.02)
    feed.close(MultigrainError(ErrorKind.UNAVAILABLE, "going away"))
    with pytest.raises(MultigrainError, match="going away"):
        await task
    assert feed.subscribers == 0


async def test_twenty_subscribers_that_reconnect_at_random_receive_the_same_events(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A window much shorter than the log: slow ones fall back to the file, fast ones do not.
    monkeypatch.setattr(event_feed, "WINDOW", 16)
    feed = EventFeed("job-1", path)
    total = 600
    chance = random.Random(1)

    async def write() -> None:
        with EventWriter(path, "job-1") as writer:
            writer.append(StateRecord(JobState.RUNNING), 1)
            for step in range(1, total + 1):
                writer.append(loss(step, total), 1)
                if step % 7 == 0:
                    feed.poll()
                    await asyncio.sleep(0)
            writer.append(StateRecord(JobState.SUCCEEDED), 1)
        feed.poll()

    async def subscribe(number: int) -> list[bytes]:
        got: list[bytes] = []
        ended = False
        while not ended:
            last = JobEvent.FromString(got[-1]).seq if got else 0
            budget = chance.randrange(1, 160) if number % 2 else total * 2
            stream = _stream(feed, last)
            ended = True
            async for event in stream:
                if event.HasField("heartbeat"):
                    continue
                got.append(event.SerializeToString())
                budget -= 1
                if budget == 0:
                    ended = False
                    break
                if chance.random() < 0.05:
                    await asyncio.sleep(0)
            await stream.aclose()
        return got

    feed.poll()
    writer = asyncio.create_task(write())
    lists = await asyncio.gather(*(subscribe(number) for number in range(20)))
    await writer
    seqs = [JobEvent.FromString(raw).seq for raw in lists[0]]
    assert seqs == list(range(1, total + 3))
    assert all(got == lists[0] for got in lists)


def _damage(path: Path) -> None:
    """Of the lines 2 and 3, one does not begin like an event, one does but cannot be decoded."""
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\x00\xff" * 20
    lines[2] = lines[2].replace(b'"step":2', b'"step":,')
    path.write_bytes(b"\n".join(lines))


async def test_damaged_lines_are_skipped(path: Path) -> None:
    _write(path, 3)
    _damage(path)
    feed = EventFeed("job-1", path)
    assert [event.seq for event in await _all(feed)] == [1, 4, 5]
    assert feed.view.state is JobState.SUCCEEDED


async def test_a_file_name_that_is_not_utf_8_is_escaped(path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    with EventWriter(path, "job-1") as writer:
        writer.append(LogRecord("WARNING", f"skipped {name} \U0001f600", fields={"path": name}), 1)
        writer.append(StateRecord(JobState.FAILED, name, JobError("DATASET", name)), 1)
    feed = EventFeed("job-1", path)
    events = await _all(feed)
    assert [event.seq for event in events] == [1, 2]
    assert events[0].log.message == "skipped caf\\udce9.png \U0001f600"
    assert feed.view.error == JobError("DATASET", "caf\\udce9.png")


async def test_records_of_a_newer_version_do_not_end_the_stream(path: Path) -> None:
    _write(path, 1, end=None)
    with path.open("ab") as file:
        file.write(
            b'{"seq":3,"time":"2026-01-01T00:00:00.5Z","job_id":"job-1","attempt":1,"novelty":{}}\n'
            b'{"seq":4,"time":"2026-01-01T00:00:01Z","job_id":"job-1","attempt":1,'
            b'"checkpoint":{"step":1,"epoch":1,"name":"c","novelty":3}}\n'
        )
    feed = EventFeed("job-1", path)
    events = await _all(feed, follow=False)
    assert [event.WhichOneof("event") for event in events[2:]] == [None, "checkpoint"]
    assert events[2].time.ToNanoseconds() % 10**9 == 500_000_000
    assert feed.view.last_checkpoint is not None


async def test_the_view_has_the_newest_loss_of_a_long_event_log(path: Path) -> None:
    _write(path, 3000)
    feed = EventFeed("job-1", path)
    await feed.catch_up()
    assert feed.view.last_loss is not None
    assert (feed.view.last_loss.step, feed.last_seq) == (3000, 3002)
    assert feed.view.last_check is not None
    assert feed.view.last_check.step == 1  # amid the points that are passed over
