"""The files of a job, and finding a job by a part of its id."""

from __future__ import annotations

import pytest

from multigrain.v1.job_pb2 import JOB_STATE_SUCCEEDED
from multigrain_client import InvalidRequest, NotFound, ServerError
from tests.client.events import job_of

NEWEST = "train-20260131-130000-bbbbbb"
OLDER = "train-20260131-120000-aaaaaa"


@pytest.fixture
def jobs(state):
    # The server lists the newest first.
    for job_id in (NEWEST, OLDER, "eval-1"):
        state.jobs[job_id] = job_of(job_id, state=JOB_STATE_SUCCEEDED)
    state.artifacts = {"results/metrics.json": b"{}", "workers/worker_0.log": b"a long enough log"}
    return state


@pytest.mark.parametrize(
    ("text", "found"),
    [("last", NEWEST), ("eval", "eval-1"), (OLDER, OLDER), ("train-20260131-12", OLDER)],
)
def test_a_job_is_found(client, jobs, text, found):
    assert client.find_job(text).job_id == found


def test_a_beginning_of_several_ids_names_them(client, jobs):
    with pytest.raises(InvalidRequest, match=f"several ids.*{NEWEST}, {OLDER}"):
        client.find_job("train-2026")


def test_an_id_that_is_the_beginning_of_another_one_is_found(client, jobs):
    jobs.jobs["eval-10"] = job_of("eval-10", state=JOB_STATE_SUCCEEDED)
    assert client.find_job("eval-1").job_id == "eval-1"


@pytest.mark.parametrize("text", ["none", "last"])
def test_a_job_that_does_not_exist_is_not_found(client, state, text):
    with pytest.raises(NotFound):
        client.find_job(text)


def test_files_are_listed_by_kind_and_read(client, jobs):
    assert [a.name for a in client.artifacts(OLDER)] == list(jobs.artifacts)
    assert [a.name for a in client.artifacts(OLDER, kinds=["log"])] == ["workers/worker_0.log"]
    with pytest.raises(InvalidRequest, match="kinds"):
        client.artifacts(OLDER, kinds=["picture"])
    log = jobs.artifacts["workers/worker_0.log"]
    assert client.read_artifact(OLDER, "workers/worker_0.log") == log
    assert client.read_artifact(OLDER, "workers/worker_0.log", offset=9) == log[9:]


def test_a_download_appears_when_it_is_complete(client, jobs, tmp_path):
    path = client.download_artifact(OLDER, "workers/worker_0.log", tmp_path / "a.log")
    assert path.read_bytes() == jobs.artifacts["workers/worker_0.log"]
    jobs.artifact_sha256 = "0" * 64
    with pytest.raises(ServerError, match="damaged"):
        client.download_artifact(OLDER, "workers/worker_0.log", tmp_path / "b.log")
    with pytest.raises(NotFound):
        client.download_artifact(OLDER, "results/none", tmp_path / "c")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.log"]
