"""The runner with a cluster of MindSpore on the CPU."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from datetime import datetime

import pytest

from multigrain.events.records import JobState, LogRecord, LossRecord
from tests.jobs.harness import Job

NewJob = Callable[..., Job]

# On a busy machine: importing MindSpore and forming a cluster is several times slower there.
_SECONDS = 180

pytestmark = [pytest.mark.process, pytest.mark.slow]


def seconds_until(job: Job, state: JobState) -> float:
    """Seconds from the start of the first attempt to the first record of a state."""
    times: dict[JobState, datetime] = {}
    for event in job.events():
        record_state = getattr(event.record, "state", None)
        if record_state is not None:
            times.setdefault(record_state, datetime.fromisoformat(event.time))
    return float((times[state] - times[JobState.STARTING]).total_seconds())


@pytest.mark.parametrize("world", [2, 4])
def test_workers_reduce_over_a_cluster_and_leave_no_process(new_job: NewJob, world: int) -> None:
    job = new_job(count=world)
    assert job.run("all_reduce", cluster="mindspore", timeout=_SECONDS) is JobState.SUCCEEDED
    total = world * (world + 1) // 2
    said = {
        record.rank: record.message.split(" threads")[0]
        for record in job.records()
        if isinstance(record, LogRecord)
    }
    assert said == dict.fromkeys(range(world), f"sum {total}")
    assert job.processes() == []
    print(
        f"{world} workers: running after {seconds_until(job, JobState.RUNNING):.1f} s, "
        f"ended after {seconds_until(job, JobState.SUCCEEDED):.1f} s"
    )


def test_a_killed_worker_is_followed_by_a_second_attempt(new_job: NewJob) -> None:
    job = new_job(count=2)
    runner = job.start("reduce_forever", cluster="mindspore")
    job.wait_for(lambda: len(job.losses()) > 3, timeout=_SECONDS)
    job.workers()[-1].kill()
    job.wait_for(lambda: job.events()[-1].attempt == 2, timeout=_SECONDS)
    job.wait_for(lambda: isinstance(job.events()[-1].record, LossRecord), timeout=_SECONDS)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(30) == 0
    assert (job.states()[-1].state, job.states()[-1].message) == (JobState.CANCELLED, "stopped")
    error = next(record.error for record in job.states() if record.error)
    assert (error.kind, error.signal) == ("WORKER_DIED", signal.SIGKILL)
    assert job.processes() == []


def test_no_process_outlives_the_runner(new_job: NewJob) -> None:
    job = new_job(count=2, max_restarts=0)
    runner = job.start("reduce_forever", cluster="mindspore")
    job.wait_for(lambda: bool(job.losses()), timeout=_SECONDS)
    runner.kill()
    job.wait_for(lambda: not job.processes())


def test_a_port_in_use_is_replaced_within_the_attempt(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("TEST_FIRST_PORT", str(taken.getsockname()[1]))
        job = new_job(count=2)
        assert job.run("all_reduce", cluster="mindspore", timeout=_SECONDS) is JobState.SUCCEEDED
    assert {event.attempt for event in job.events()} == {0, 1}
    assert "port was taken" in (job.folder.logs / "runner.log").read_text()
