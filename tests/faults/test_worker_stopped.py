"""SIGSTOP of a worker: it is noticed by its silence, and treated like a death."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from multigrain.events.records import JobState
from tests.faults.curve import assert_numbered, assert_whole_curve, wait_until_running
from tests.jobs.harness import Job

pytestmark = pytest.mark.process

NewJob = Callable[..., Job]

WORK = "tests.faults.work:train"


def test_a_stopped_worker_is_named_ended_and_followed_by_the_next_attempt(
    new_job: NewJob,
) -> None:
    job = new_job(labels={"holds": "1"}, count=2, stall_timeout_seconds=2)
    runner = job.start(WORK)
    job.wait_for(lambda: len(job.losses()) == 10, timeout=60)
    wait_until_running(job, 1)
    stopped = next(p for p in job.workers() if p.environ()["RANK_ID"] == "1")
    stopped.send_signal(signal.SIGSTOP)
    assert runner.wait(60) == 0
    assert not stopped.is_running()
    assert job.states()[-1].state is JobState.SUCCEEDED
    restart = next(record for record in job.states() if record.error)
    assert restart.error is not None
    assert (restart.error.kind, restart.error.rank) == ("STALLED", 1)
    assert re.search(r"rank 1 made no progress for \d+ s and was killed", restart.message)
    assert "its process is suspended (by SIGSTOP" in restart.message
    assert "stall_timeout_seconds" in restart.message
    assert_numbered(job.events())
    assert_whole_curve(job.events(), 40)


def test_the_first_step_may_take_longer_than_later_ones(new_job: NewJob) -> None:
    labels = {"compile": "3"}
    job = new_job(labels=labels, stall_timeout_seconds=1, max_restarts=0)
    assert job.run("tests.faults.work:compile_for_a_while", timeout=60) is JobState.SUCCEEDED


def test_a_first_step_that_never_comes_is_noticed_too(new_job: NewJob) -> None:
    job = new_job(
        labels={"compile": "600"},
        stall_timeout_seconds=1,
        first_step_timeout_seconds=1.5,
        max_restarts=0,
    )
    assert job.run("tests.faults.work:compile_for_a_while", timeout=60) is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert (error.kind, error.rank) == ("STALLED", 0)
    assert "first_step_timeout_seconds" in error.message
