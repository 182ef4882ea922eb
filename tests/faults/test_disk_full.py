"""A really full disk: what waits, what is refused, and that everything continues with space."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from multigrain.checkpoint import store
from multigrain.events.log import Event, read_events
from multigrain.events.records import LogRecord, LossRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.v1 import job_pb2
from multigrain.v1.common_pb2 import ERROR_KIND_STORAGE
from multigrain_client import Client, MultigrainClientError
from tests.engine.pictures import picture
from tests.faults.curve import assert_numbered, assert_whole_curve
from tests.faults.serving import serving_daemon
from tests.faults.small_disk import SmallDisk, small_disk
from tests.server.process import DaemonProcess

pytestmark = pytest.mark.process

STEPS = 80


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "data", 24) as made:
        yield made


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Image folders; a submission only reads the file names."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(picture(1))
    return tmp_path / "images"


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(client: Client, images: Path, labels: dict[str, str]) -> job_pb2.Job:
    spec = {"preset": "digits-demo", "dataset": {"train_path": str(images), "val_path": ""}}
    return client.start_training({**spec, "evaluation": {"every_epochs": 0}}, labels=labels)


def test_with_a_full_disk_jobs_wait_or_fail_and_the_daemon_serves(
    tmp_path: Path, disk: SmallDisk, images: Path
) -> None:
    flags = ["--devices=cpu:3"]
    daemon = serving_daemon(
        tmp_path, ["tiny"], flags, roots=[images], module="tests.faults.quick_daemon"
    )
    try:
        with daemon.client() as client:
            vectors = client.embed([picture(1)])
            archive = tmp_path / "tiny.tar"
            client.download_model("tiny", archive)
            gate = tmp_path / "gate"
            common = {"steps": str(STEPS), "gate": str(gate)}
            pausing = start(client, images, {**common, "every": "0"})
            failing = start(client, images, {**common, "every": "8"})
            cancelled = start(client, images, {**common, "holds": "9", "every": "0"})
            jobs = [pausing, failing, cancelled]
            folders = {job.job_id: JobFolder(disk.path / "jobs" / job.job_id) for job in jobs}

            def events(job: job_pb2.Job) -> list[Event]:
                return list(read_events(folders[job.job_id].events))

            def losses(job: job_pb2.Job) -> int:
                return sum(isinstance(event.record, LossRecord) for event in events(job))

            wait(lambda: [losses(job) for job in jobs] == [20, 20, 10])
            before = {job.job_id: events(job) for job in jobs}
            disk.fill()
            gate.touch()

            wait(lambda: "data directory is full" in client.job(pausing).state_message)
            client.cancel(cancelled)
            np.testing.assert_array_equal(client.embed([picture(1)]), vectors)
            assert {job.job_id for job in client.jobs()} == set(folders)
            for refused in (
                lambda: start(client, images, {"steps": "1"}),
                lambda: client.import_model(archive, name="copy"),
                lambda: client.set_alias("production", "tiny"),
            ):
                with pytest.raises(MultigrainClientError, match="free up disk space") as caught:
                    refused()
                assert caught.value.kind == "STORAGE"
            assert {job.job_id for job in client.jobs()} == set(folders)
            assert [model.name for model in client.models()] == ["tiny"]
            for job in jobs:  # no incomplete line, and nothing lost
                assert events(job)[: len(before[job.job_id])] == before[job.job_id]
            good = store.latest_good(folders[failing.job_id].checkpoints)
            assert good is not None

            disk.empty()
            wait(lambda: client.job(pausing).state == job_pb2.JOB_STATE_SUCCEEDED)
            assert_numbered(events(pausing))
            assert_whole_curve(events(pausing), STEPS)
            logged = [e.record for e in events(pausing) if isinstance(e.record, LogRecord)]
            assert any("was not writable" in record.message for record in logged)
            assert client.job(pausing).attempt == 1

            wait(lambda: client.job(failing).state == job_pb2.JOB_STATE_FAILED)
            error = client.job(failing).error
            assert error.kind == ERROR_KIND_STORAGE
            assert "No space left on device" in error.message
            client.resume(failing)
            wait(lambda: client.job(failing).state == job_pb2.JOB_STATE_SUCCEEDED)
            assert_numbered(events(failing))
            assert_whole_curve(events(failing), STEPS)

            wait(lambda: client.job(cancelled).state == job_pb2.JOB_STATE_CANCELLED)
            assert_numbered(events(cancelled))

            client.import_model(archive, name="copy")
            client.set_alias("production", "tiny")
            more = start(client, images, {"steps": "10", "every": "5"})
            wait(lambda: client.job(more).state == job_pb2.JOB_STATE_SUCCEEDED)
        daemon.kill()
        daemon.start()
        with daemon.client() as client:
            states = {job.job_id: job.state for job in client.jobs()}
        assert states == {
            pausing.job_id: job_pb2.JOB_STATE_SUCCEEDED,
            failing.job_id: job_pb2.JOB_STATE_SUCCEEDED,
            cancelled.job_id: job_pb2.JOB_STATE_CANCELLED,
            more.job_id: job_pb2.JOB_STATE_SUCCEEDED,
        }
    finally:
        daemon.end()


def test_a_daemon_on_a_full_disk_refuses_to_start_with_the_reason(
    tmp_path: Path, disk: SmallDisk
) -> None:
    disk.fill()
    refused = DaemonProcess(disk.path)
    assert refused.popen.wait(60) == 1
    output = refused.log.read_text()
    assert "is the disk full" in output or "No space left on device" in output
    assert "Traceback" not in output
    disk.empty()
    daemon = DaemonProcess(disk.path)
    try:
        daemon.wait_ready()
    finally:
        daemon.end()
