"""SIGKILL of a worker, of a guard and of MindSpore's scheduler: the next attempt goes on."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from multigrain.events.records import JobError, JobState
from tests.faults.curve import assert_numbered, assert_whole_curve, wait_until_running
from tests.jobs.harness import Job

pytestmark = pytest.mark.process

NewJob = Callable[..., Job]

STEPS = 40


def errors(job: Job) -> list[JobError]:
    return [record.error for record in job.states() if record.error is not None]


def kill_at(job: Job, step: int, victim: Callable[[], psutil.Process]) -> None:
    """Kills a process once the attempt holds at a step; returns when nothing of it is left."""
    job.wait_for(lambda: any(loss.step == step for loss in job.losses()), timeout=60)
    attempt = job.events()[-1].attempt
    wait_until_running(job, attempt)
    left = job.processes()
    victim().kill()
    job.wait_for(lambda: job.events()[-1].attempt > attempt, timeout=60)
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive, "processes of the attempt before live on"


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_and_no_more(
    new_job: NewJob,
) -> None:
    job = new_job(labels={"steps": str(STEPS), "holds": "2"}, count=2)
    runner = job.start("tests.faults.work:train")

    def rank(number: int) -> psutil.Process:
        (found,) = [p for p in job.workers() if p.environ()["RANK_ID"] == str(number)]
        return found

    kill_at(job, 10, lambda: rank(0))
    kill_at(job, 20, lambda: rank(1))
    assert runner.wait(60) == 0
    assert job.states()[-1].state is JobState.SUCCEEDED
    assert [(e.kind, e.rank, e.signal) for e in errors(job)] == [
        ("WORKER_DIED", 0, 9),
        ("WORKER_DIED", 1, 9),
    ]
    assert "restart 1 of 3" in next(record.message for record in job.states() if record.error)
    assert job.processes() == []
    events = job.events()
    assert_numbered(events)
    assert_whole_curve(events, STEPS)
    # Checkpoints are 4 steps apart: 8 is the last before 10, 20 itself has one.
    firsts = {e.attempt: e.record.step for e in reversed(events) if hasattr(e.record, "loss")}
    assert firsts == {1: 1, 2: 9, 3: 21}


@pytest.mark.slow
def test_killed_guard_and_scheduler_are_followed_by_attempts_from_the_last_checkpoint(
    new_job: NewJob,
) -> None:
    job = new_job(labels={"steps": str(STEPS), "holds": "2"})
    runner = job.start("tests.faults.work:train", cluster="scheduler")

    def guard() -> psutil.Process:
        found = psutil.Process(runner.pid).children()
        (process,) = [p for p in found if p.environ().get("MS_ROLE") == "MS_WORKER"]
        return process

    def scheduler() -> psutil.Process:
        # A guard of ours and its child, which is MindSpore's.
        mine = [p for p in job.processes() if p.environ().get("MS_ROLE") == "MS_SCHED"]
        pids = {process.pid for process in mine}
        (process,) = [process for process in mine if process.ppid() in pids]
        return process

    kill_at(job, 10, guard)
    kill_at(job, 20, scheduler)
    assert runner.wait(60) == 0
    assert job.states()[-1].state is JobState.SUCCEEDED
    by_guard, by_scheduler = errors(job)
    assert (by_guard.kind, by_guard.signal) == ("WORKER_DIED", 9)
    assert (by_scheduler.kind, by_scheduler.signal) == ("WORKER_DIED", 9)
    assert "scheduler" in by_scheduler.message
    assert_numbered(job.events())
    assert_whole_curve(job.events(), STEPS)
    assert job.processes() == []
