"""Workers die, jobs are cancelled, resumed and queued."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from multigrain.v1 import job_pb2
from multigrain.v1.common_pb2 import ERROR_KIND_WORKER_DIED
from tests.e2e.daemon import Daemon, processes_below, wait_for_no_processes
from tests.e2e.jobs import MOMENTUM, small_training, wait_for_losses

pytestmark = [pytest.mark.process, pytest.mark.slow]


def heaviest_worker(daemon: Daemon) -> psutil.Process:
    """A process that really computes: the one with the most memory below the daemon's jobs."""
    return max(processes_below(daemon.data_dir / "jobs"), key=lambda p: p.memory_info().rss)


def test_a_killed_worker_costs_one_attempt_and_no_step_is_lost(
    daemon: Daemon, digits: Path
) -> None:
    every = {"every_steps": 3}
    spec = small_training(digits, epochs=4, workers=2, checkpointing=every, optimizer=MOMENTUM)
    with daemon.client() as client:
        job = client.start_training(spec)
        wait_for_losses(daemon, job.job_id, 4)
        heaviest_worker(daemon).kill()
        job = client.wait(job)
        points = list(client.stream_losses(job))
        assert job.attempt == 2
        total = job.progress.total_steps
        newest = {point.step: point.attempt for point in points}
        assert sorted(newest) == list(range(1, total + 1))
        assert newest[total] == 2
        first_of_second = min(p.step for p in points if p.attempt == 2)
        assert first_of_second > 1, "the second attempt started from scratch"
        states = [event.state for event in client.stream_events(job, kinds=["state"])]
        (error,) = [state.error for state in states if state.HasField("error")]
        assert (error.kind, error.signal) == (ERROR_KIND_WORKER_DIED, 9)
        assert error.rank in (0, 1)
        assert f"rank {error.rank}" in error.message
    wait_for_no_processes(daemon.data_dir / "jobs")


def test_a_cancelled_job_saves_first_and_resumes_where_it_stopped(
    daemon: Daemon, digits: Path
) -> None:
    with daemon.client() as client:
        spec = small_training(digits, epochs=5, workers=2, optimizer=MOMENTUM)
        job = client.start_training(spec)
        waiting = client.start_training(small_training(digits, epochs=1), name="second")
        wait_for_losses(daemon, job.job_id, 2)
        queued = client.job(waiting)
        assert queued.state == job_pb2.JOB_STATE_QUEUED
        assert job.job_id in queued.state_message
        assert client.cancel(waiting).state == job_pb2.JOB_STATE_CANCELLED

        client.cancel(job)
        stopped = ended(client, job)
        assert stopped.state == job_pb2.JOB_STATE_CANCELLED
        saved = stopped.last_checkpoint.step
        assert saved == max(p.step for p in client.stream_losses(job, follow=False))

        client.resume(job)
        done = client.wait(job)
        assert done.attempt == 2
        second = [p.step for p in client.stream_losses(done) if p.attempt == 2]
        assert second == list(range(saved + 1, done.progress.total_steps + 1))
        client.delete_job(done)
        assert not (daemon.data_dir / "jobs" / job.job_id).exists()


def ended(client, job):  # type: ignore[no-untyped-def]
    """The job in its terminal state, whichever it is."""
    deadline = time.monotonic() + 120
    while (now := client.job(job)).state < job_pb2.JOB_STATE_SUCCEEDED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return now
