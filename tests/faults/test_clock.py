"""The clock is set while everything runs: only what is written down for people changes."""

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

FOR_PEOPLE = {
    "multigrain/events/log.py": "the time of an event",
    "multigrain/export/job.py": "when a bundle was made",
    "multigrain/train/loop.py": "when a checkpoint was made",
    "multigrain_server/jobs/creation.py": "a readable job id",
    "multigrain_server/database.py": "the name of an index that is put aside",
    "multigrain_server/serving/statistics.py": "the Open Inference Protocol's last_inference",
    "multigrain_server/tracing/spans.py": "when a span was, for who looks at traces",
    "multigrain_server/status/site.py": "ages of what a page shows",
    "multigrain_server/doctor/access.py": "days that a certificate has left",
    "multigrain_server/doctor/machine.py": "whether the clock is right",
}


def test_the_time_of_day_is_asked_for_only_where_people_read_it() -> None:
    asked = set()
    for package in (multigrain, multigrain_server, multigrain_client):
        root = Path(str(package.__file__)).parent
        for path in root.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in DAYTIME:
                    asked.add(str(path.relative_to(root.parent)))
    # A time-out or a lease by it would end an hour early, or late. Not time.monotonic()?
    assert asked == FOR_PEOPLE.keys()


@pytest.mark.slow
def test_jobs_and_models_take_no_notice_of_a_clock_that_jumps_by_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = [str(ROOT / "tests" / "faults" / "jumping"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("TEST_CLOCK", "jumps")
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
