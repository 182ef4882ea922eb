"""The index keeps what it is given, and tells what is asked."""

from __future__ import annotations

import sqlite3

import pytest

from multigrain.events.log import Event
from multigrain.events.records import JobError, JobState, StateRecord
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import TrainingSpec
from multigrain_server.database import Database
from multigrain_server.jobs.job import JobView
from multigrain_server.jobs.store import SCHEMA, JobFilter, JobStore
from multigrain_server.paging import PageToken


@pytest.fixture
def database() -> Database:
    return Database(":memory:", [SCHEMA])


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


def _request(number: int, **fields: object) -> JobRequest:
    body = {
        "job_id": f"train-{number}",
        "kind": JobKind.TRAINING,
        "create_time": f"2026-01-01T00:00:{number:02d}.000000Z",
        "training": TrainingSpec(),
    }
    return JobRequest.model_validate({**body, **fields})


def test_a_stored_job_is_read_back(store: JobStore) -> None:
    request = _request(1, name="n", labels={"a": "b"}, request_id="r")
    store.insert(request, JobView(), 10)
    view = JobView()
    started = StateRecord(JobState.STARTING)
    view.apply(Event(2, "2026-01-01T00:01:00Z", "train-1", 1, started))
    error = JobError("DIVERGED", "m", rank=3)
    failed = StateRecord(JobState.FAILED, "why", error, 1)
    view.apply(Event(3, "2026-01-01T00:02:00Z", "train-1", 1, failed))
    store.save_view("train-1", view, 99)
    row = store.get("train-1")
    assert row is not None
    assert (row.job.request, row.job.view, row.events_bytes) == (request, view, 99)
    assert store.by_request_id("r") == row
    assert store.by_request_id("") is None


def test_ids_and_request_ids_are_unique(store: JobStore) -> None:
    store.insert(_request(1, request_id="r"), JobView(), 0)
    store.insert(_request(2), JobView(), 0)
    store.insert(_request(3), JobView(), 0)
    with pytest.raises(sqlite3.IntegrityError):
        store.insert(_request(1), JobView(), 0)
    with pytest.raises(sqlite3.IntegrityError):
        store.insert(_request(4, request_id="r"), JobView(), 0)


def test_a_view_of_another_version_is_marked_for_derivation(
    store: JobStore, database: Database
) -> None:
    store.insert(_request(1), JobView(state=JobState.FAILED), 10)
    database.execute("UPDATE jobs SET view='{\"novelty\": 1}'")
    row = store.get("train-1")
    assert row is not None
    assert (row.job.view.state, row.events_bytes) == (JobState.FAILED, -1)


def test_a_job_with_a_cancel_request_is_listed_and_counted_as_stopping(store: JobStore) -> None:
    store.insert(_request(1), JobView(state=JobState.RUNNING), 0)
    store.insert(_request(2), JobView(state=JobState.RUNNING), 0)
    store.save_cancel("train-1", True)
    (row,) = store.page(JobFilter(states=("STOPPING",)), None, 10)
    assert row.job.job_id == "train-1"
    assert row.job.state is JobState.STOPPING
    assert store.counts() == {"RUNNING": 1, "STOPPING": 1}


def test_labels_with_quotes_are_found(store: JobStore) -> None:
    store.insert(_request(1, labels={'a"b': "c' OR 1"}), JobView(), 0)
    store.insert(_request(2, labels={"x": "y"}), JobView(), 0)
    found = list(store.page(JobFilter(labels=(('a"b', "c' OR 1"),)), None, 10))
    assert [row.job.job_id for row in found] == ["train-1"]


def test_pages_go_from_newest_to_oldest(store: JobStore) -> None:
    for number in (3, 1, 2):
        store.insert(_request(number), JobView(), 0)
    first = list(store.page(JobFilter(), None, 2))
    assert [row.job.job_id for row in first] == ["train-3", "train-2"]
    last = first[-1].job
    rest = list(store.page(JobFilter(), PageToken((last.request.create_time, last.job_id)), 2))
    assert [row.job.job_id for row in rest] == ["train-1"]


def test_rows_of_ended_jobs_are_cached_until_they_change(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        store.insert(_request(number), JobView(state=JobState.FAILED, last_seq=1), 10)
    decoded: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda job_id: decoded.append(job_id) or get(job_id))

    def ended() -> dict[str, str]:
        return {row.job.job_id: row.job.state.value for row in store.latest_ended(10)}

    newest_first = ["train-2", "train-1", "train-0"]
    assert list(ended()) == list(ended()) == newest_first
    assert decoded == newest_first
    store.save_view("train-1", JobView(state=JobState.CANCELLED, last_seq=2), 20)
    store.delete("train-0")
    assert ended() == {"train-2": "FAILED", "train-1": "CANCELLED"}
    assert decoded == [*newest_first, "train-1"]
    store.save_view("train-2", JobView(state=JobState.RUNNING, last_seq=2), 20)
    assert list(ended()) == ["train-1"]
