"""The files of a job that clients may read, and hostile things in their place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.job_folder import JobFolder
from multigrain_server.jobs import artifacts
from multigrain_server.jobs.artifacts import (
    ArtifactKind,
    ArtifactReader,
    list_artifacts,
    open_artifact,
)


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    (tmp_path / "secret.txt").write_text("secret")
    folder = JobFolder(tmp_path / "jobs" / "train-1")
    for name, content in (
        ("spec.json", "{}"),
        ("lease.json", "{}"),
        ("results/metrics.json", '{"a": 1}'),
        ("results/best/metrics.json", "{}"),
        ("workers/worker_0.log", "line\n" * 3),
        ("workers/.tmp-x", "x"),
        ("checkpoints/step-00000001/model.safetensors", "w" * 100),
    ):
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_the_files_of_each_kind_are_listed(job: JobFolder) -> None:
    found = {(a.name, a.kind.value, a.size) for a in list_artifacts(job)}
    assert found == {
        ("checkpoints/step-00000001/model.safetensors", "CHECKPOINT", 100),
        ("results/best/metrics.json", "RESULT", 2),
        ("results/metrics.json", "RESULT", 8),
        ("workers/worker_0.log", "LOG", 15),
    }
    logs = list_artifacts(job, [ArtifactKind.LOG])
    assert [a.name for a in logs] == ["workers/worker_0.log"]


def test_links_and_pipes_are_neither_listed_nor_sent(job: JobFolder, tmp_path: Path) -> None:
    (job.results / "link.json").symlink_to(tmp_path / "secret.txt")
    (job.results / "folder").symlink_to(tmp_path)
    os.mkfifo(job.results / "pipe")
    names = {a.name for a in list_artifacts(job, [ArtifactKind.RESULT])}
    assert names == {"results/metrics.json", "results/best/metrics.json"}
    for name in ("results/link.json", "results/folder/secret.txt", "results/pipe", "results/best"):
        with pytest.raises(MultigrainError) as caught:
            open_artifact(job, name)
        assert caught.value.kind is ErrorKind.NOT_FOUND


def test_a_folder_that_is_a_link_to_elsewhere_has_no_files(job: JobFolder, tmp_path: Path) -> None:
    job.results.rename(tmp_path / "moved")
    job.results.symlink_to(tmp_path / "moved")
    assert list_artifacts(job, [ArtifactKind.RESULT]) == []
    with pytest.raises(MultigrainError, match="has no file"):
        open_artifact(job, "results/metrics.json")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "spec.json",
        "lease.json",
        "results",
        "results/",
        "/etc/passwd",
        "results/../lease.json",
        "results/../../../secret.txt",
        "results//metrics.json",
        "workers/.tmp-x",
        "results/a\0b",
        "results/\udc80",
        "results/" + "x" * 2000,
        "weights/model.safetensors",
    ],
)
def test_other_names_are_refused(job: JobFolder, name: str) -> None:
    with pytest.raises(MultigrainError) as caught:
        open_artifact(job, name)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert "ListArtifacts" in caught.value.message


def test_a_long_listing_ends(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_ARTIFACTS", 3)
    assert len(list_artifacts(job)) == 3


async def test_a_file_is_read_as_long_as_it_was_when_it_was_opened(job: JobFolder) -> None:
    log = job.logs / "worker_0.log"
    with open_artifact(job, "workers/worker_0.log") as file:
        reader = ArtifactReader(file, "worker_0.log", offset=5)
        with log.open("a") as more:
            more.write("grown")
        content = b"".join([chunk async for chunk in reader.chunks()])
        assert (content, reader.size) == (b"line\nline\n", 15)
        assert reader.sha256 == hashlib.sha256(content).hexdigest()
        with pytest.raises(MultigrainError) as error:
            ArtifactReader(file, "worker_0.log", offset=21)
    assert error.value.kind is ErrorKind.INVALID_FIELD
