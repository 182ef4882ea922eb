"""The runner when workers die, fail or stall, and when it is killed itself."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from multigrain.events.records import JobState
from multigrain.jobs.ipc import channel_folders
from multigrain.jobs.job_request import JobKind
from tests.jobs.harness import Job

pytestmark = pytest.mark.process

NewJob = Callable[..., Job]


def states(job: Job) -> list[JobState]:
    return [record.state for record in job.states()]


def assert_numbered(job: Job) -> None:
    events = job.events()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_a_killed_guard_is_noticed(new_job: NewJob) -> None:
    job = new_job(count=2, max_restarts=0)
    runner = job.start("run_until_stopped")
    job.wait_for(lambda: bool(job.losses()))
    job.workers()[0].parent().kill()  # type: ignore[union-attr]
    assert runner.wait(60) == 0
    error = job.states()[-1].error
    assert error is not None
    assert (error.kind, error.signal) == ("WORKER_DIED", 9)
    assert job.processes() == []


def test_a_worker_that_dies_in_every_attempt_fails_the_job_with_the_reason(new_job: NewJob) -> None:
    job = new_job(count=2, max_restarts=1)
    assert job.run("always_die") is JobState.FAILED
    last = job.states()[-1]
    assert last.error is not None
    assert (last.error.kind, last.error.rank, last.error.signal) == ("WORKER_DIED", 1, 9)
    assert "rank 1 was killed by SIGKILL (signal 9)" in last.error.message
    assert "memory" in last.error.message
    assert "rank 1 is about to die" in last.error.log_tail
    assert last.exit_code == 137
    assert job.events()[-1].attempt == 2
    assert job.processes() == []


def test_an_unexpected_exception_is_retried_and_reported(new_job: NewJob) -> None:
    job = new_job(max_restarts=1)
    assert job.run("raise_defect") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert (error.kind, error.rank, error.exit_code) == ("WORKER_DIED", 0, 1)
    assert "ZeroDivisionError: somewhere deep" in error.message
    assert "Traceback" in error.log_tail
    assert job.events()[-1].attempt == 2


def test_running_out_of_memory_twice_in_a_row_fails_the_job_with_advice(
    new_job: NewJob,
) -> None:
    job = new_job(max_restarts=5)
    assert job.run("run_out_of_memory") is JobState.FAILED
    last = job.states()[-1]
    assert last.error is not None
    assert last.error.kind == "WORKER_DIED"
    assert "use a smaller schedule.batch_size" in last.error.message
    assert last.message.endswith("second time in a row, without a checkpoint in between)")
    assert job.events()[-1].attempt == 2


def test_a_job_that_saves_a_checkpoint_before_memory_runs_out_keeps_its_restarts(
    new_job: NewJob,
) -> None:
    job = new_job(max_restarts=3)
    assert job.run("save_and_run_out_of_memory") is JobState.FAILED
    assert job.states()[-1].message.endswith("(restarted 3 times, max_restarts)")
    assert job.events()[-1].attempt == 4


def test_an_exit_code_is_reported(new_job: NewJob) -> None:
    job = new_job(max_restarts=0)
    assert job.run("exit_without_report") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert (error.exit_code, error.signal) == (3, None)
    assert "exited with code 3" in error.message


def test_a_user_error_is_not_retried_and_is_preferred_to_its_consequences(
    new_job: NewJob,
) -> None:
    job = new_job(count=2)
    assert job.run("refuse_dataset") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert (error.kind, error.rank) == ("DATASET", 1)
    assert error.message == "class folder 7 has no images; add some"
    assert error.log_tail == ""
    assert job.events()[-1].attempt == 1


def test_a_stalled_rank_is_killed_and_named(new_job: NewJob) -> None:
    job = new_job(count=2, max_restarts=0, stall_timeout_seconds=1.5)
    assert job.run("stall_in_rank_1") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert (error.kind, error.rank) == ("STALLED", 1)
    assert job.processes() == []


def test_a_rank_that_does_not_join_is_named(new_job: NewJob) -> None:
    job = new_job(count=2, max_restarts=0, cluster_timeout_seconds=5.0)
    assert job.run("tests.jobs.late:succeed") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert (error.kind, error.rank) == ("CLUSTER_TIMEOUT", 1)
    assert "rank 1 did not join" in error.message
    assert job.processes() == []


def test_workers_die_with_their_runner_and_a_new_runner_continues(new_job: NewJob) -> None:
    job = new_job(count=2)
    runner = job.start("run_until_stopped")
    # Rank 0 may report losses before the other worker has started.
    job.wait_for(lambda: JobState.RUNNING in states(job))
    assert len(job.processes()) == 4
    runner.kill()
    runner.wait()
    job.wait_for(lambda: not job.processes(), timeout=60)
    assert job.run("succeed") is JobState.SUCCEEDED
    lost = next(record for record in job.states() if record.error)
    assert lost.error is not None
    assert lost.error.kind == "RUNNER_LOST"
    assert job.events()[-1].attempt == 2
    assert_numbered(job)


def test_workers_in_native_code_die_with_their_runner_too(new_job: NewJob) -> None:
    job = new_job(count=1)
    runner = job.start("hold_the_gil")
    job.wait_for(lambda: bool(job.losses()))
    runner.kill()
    runner.wait()
    job.wait_for(lambda: not job.processes(), timeout=60)


def test_a_lost_runner_counts_as_a_restart(new_job: NewJob) -> None:
    job = new_job(max_restarts=0)
    runner = job.start("run_until_stopped")
    job.wait_for(lambda: bool(job.losses()))
    runner.kill()
    runner.wait()
    assert job.run("succeed") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert error.kind == "RUNNER_LOST"


def test_a_job_whose_runner_is_killed_while_stopping_is_canceled(new_job: NewJob) -> None:
    job = new_job()
    runner = job.start("ignore_stop")
    job.wait_for(lambda: bool(job.losses()))
    runner.send_signal(signal.SIGTERM)
    job.wait_for(lambda: states(job)[-1] is JobState.STOPPING)
    runner.kill()
    runner.wait()
    assert channel_folders(job.folder.path)
    assert job.run("succeed") is JobState.CANCELLED
    assert channel_folders(job.folder.path) == []


def test_an_evaluation_is_restarted_once(new_job: NewJob) -> None:
    job = new_job(kind=JobKind.EVALUATION)
    assert job.run("raise_defect") is JobState.FAILED
    assert job.events()[-1].attempt == 2
