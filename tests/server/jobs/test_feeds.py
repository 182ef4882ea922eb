"""The feeds of jobs that have ended."""

from __future__ import annotations

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.jobs import event_feed, service
from tests.server.jobs.conftest import JobSide


def test_only_so_many_feeds_without_a_reader_are_kept(side: JobSide) -> None:
    read = side.feeds.open("train-read")
    read.subscribers = 1
    for number in range(service._MAX_IDLE_FEEDS + 20):
        side.feeds.open(f"train-{number}")
    assert len(side.feeds._ended) == service._MAX_IDLE_FEEDS
    assert side.feeds.open("train-read") is read


def test_a_stopping_daemon_opens_no_feed(side: JobSide) -> None:
    side.feeds.close()
    with pytest.raises(MultigrainError, match="shutting down") as caught:
        side.feeds.open("train-1")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.retry_after


async def test_who_still_reads_a_deleted_job_is_told_so(
    side: JobSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "BATCH_BYTES", 1)
    job = await side.submit(events="5")
    await side.ended(job.job_id)
    events = side.jobs.event_feed(job.job_id).batches(0, frozenset(), True)
    await anext(events)
    await side.jobs.delete(job.job_id)
    with pytest.raises(MultigrainError, match="was deleted") as caught:
        await anext(events)
    assert caught.value.kind is ErrorKind.NOT_FOUND
