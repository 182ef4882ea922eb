"""Setting the system clock affects only times that people read."""

from __future__ import annotations

import ast
import itertools
import os
import time
from datetime import datetime
from pathlib import Path

import pytest

import multigrain
import multigrain_client
import multigrain_server
from multigrain.events.log import read_events
from multigrain.jobs.job_folder import JobFolder
from multigrain.v1 import job_pb2
from tests.engine.pictures import picture
from tests.faults.curve import ROOT, assert_numbered, assert_whole_curve
from tests.faults.serving import serving_daemon

pytestmark = pytest.mark.process

DAYTIME = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}

# Files that read the system clock, for times that people read or that the file system keeps.
FOR_PEOPLE = {
    "multigrain/events/log.py": "the time of an event",
    "multigrain/export/job.py": "when a bundle was created",
    "multigrain/train/graph_store.py": "the age of files",
    "multigrain/train/loop.py": "when a checkpoint was created",
    "multigrain_server/database.py": "the name of a damaged index that is moved aside",
    "multigrain_server/doctor/machine.py": "whether the clock is right",
    "multigrain_server/doctor/network.py": "days until a certificate expires",
    "multigrain_server/indexes/service.py": "the time of an index and of its items",
    "multigrain_server/jobs/files.py": "a readable job id",
    "multigrain_server/models/metrics.py": "the Open Inference Protocol's last_inference",
    "multigrain_server/models/state.py": "the name of what is no file and is moved aside",
    "multigrain_server/status/site.py": "ages on a page",
    "multigrain_server/tracing/spans.py": "the time of a span",
}


def test_the_system_clock_is_read_only_for_times_that_people_read() -> None:
    found = set()
    for package in (multigrain, multigrain_server, multigrain_client):
        root = Path(str(package.__file__)).parent
        for path in root.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in DAYTIME:
                    found.add(str(path.relative_to(root.parent)))
    # A timeout or a lease that uses it would end early or late when the clock is set: they use
    # time.monotonic().
    assert found == FOR_PEOPLE.keys()


@pytest.mark.slow
def test_a_clock_that_jumps_by_an_hour_does_not_affect_jobs_and_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = [str(ROOT / "tests" / "faults" / "jumping"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("TEST_CLOCK", "jumps")
    for key in ("JOBS__WORKER", "SERVING__ENGINE"):
        monkeypatch.setenv(f"MULTIGRAIN_{key}_ENVIRONMENT", "TEST_CLOCK")
    images = tmp_path / "images"
    (images / "cat").mkdir(parents=True)
    (images / "cat" / "1.png").write_bytes(picture(1))
    daemon = serving_daemon(tmp_path, roots=[images], module="tests.faults.quick_daemon")
    try:
        gate = tmp_path / "gate"
        with daemon.client() as client:
            job = client.start_training(
                {
                    "preset": "digits-demo",
                    "dataset": {"train_path": str(images), "val_path": ""},
                    "evaluation": {"every_epochs": 0},
                    "devices": {"stall_timeout_seconds": 60, "cluster_timeout_seconds": 60},
                    "max_restarts": 0,
                },
                labels={"steps": "40", "gate": str(gate), "pause": "0.03"},
            )
            events = JobFolder(daemon.data_dir / "jobs" / job.job_id).events
            deadline = time.monotonic() + 60
            while client.job(job).last_loss.step < 20:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        daemon.kill()
        daemon.start()
        gate.touch()
        with daemon.client() as client:
            ended = client.wait(job)
            while not list(client.models(loaded_only=True)):
                assert time.monotonic() < deadline + 60
                time.sleep(0.05)
        assert (ended.state, ended.attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 1)
        written = list(read_events(events))
        assert_numbered(written)
        assert_whole_curve(written, 40)
        times = [datetime.fromisoformat(event.time).timestamp() for event in written]
        jumps = [abs(after - before) for before, after in itertools.pairwise(times)]
        assert max(jumps) > 3000, "the clock did not jump: this test shows nothing"
    finally:
        daemon.end()
