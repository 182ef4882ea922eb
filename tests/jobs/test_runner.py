"""The runner with work functions that need no MindSpore."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import psutil
import pytest

from multigrain.events.log import EventWriter, is_locked
from multigrain.events.records import CheckpointRecord, JobState, StateRecord
from multigrain.jobs.runner_identity import RunnerIdentity
from tests.jobs.harness import Job
from tests.jobs.work import LONG

pytestmark = pytest.mark.process

NewJob = Callable[..., Job]

SUCCESS = [JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED]


def states(job: Job) -> list[JobState]:
    return [record.state for record in job.states()]


def assert_numbered(job: Job) -> None:
    events = job.events()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize("world", [1, 2])
def test_a_job_runs_to_its_end_and_leaves_no_process(new_job: NewJob, world: int) -> None:
    job = new_job(count=world)
    assert job.run("succeed") is JobState.SUCCEEDED
    assert states(job) == SUCCESS
    assert [record.step for record in job.losses()] == [1, 2, 3, 4, 5]
    last = job.states()[-1]
    assert (last.message, last.exit_code, last.error) == (f"5 steps by {world}", 0, None)
    assert [event.attempt for event in job.events()] == [0] + [1] * (len(job.events()) - 1)
    assert_numbered(job)
    assert job.processes() == []
    assert not is_locked(job.folder.events)


def test_processes_started_by_a_worker_are_killed(new_job: NewJob) -> None:
    job = new_job()
    assert job.run("leave_children") is JobState.SUCCEEDED
    assert [p for p in psutil.process_iter(["cmdline"]) if LONG in (p.info["cmdline"] or [])] == []


def test_the_runner_writes_its_identity_and_holds_the_lock(new_job: NewJob) -> None:
    job = new_job()
    runner = job.start("run_until_stopped")
    job.wait_for(lambda: bool(job.losses()))
    identity = RunnerIdentity.load(job.folder.runner)
    assert identity is not None
    assert identity.pid == runner.pid
    assert identity.process() is not None
    assert is_locked(job.folder.events)
    assert "mindspore" not in str(psutil.Process(runner.pid).memory_maps())
    assert job.start("succeed").wait(60) == 0  # a second runner leaves at once
    assert states(job)[-1] is JobState.RUNNING
    runner.kill()
    runner.wait()
    assert identity.process() is None


def test_canceling_saves_a_checkpoint_first(new_job: NewJob) -> None:
    job = new_job(count=2)
    runner = job.start("run_until_stopped")
    # The other worker, and with it RUNNING, may come later than the first losses of rank 0.
    job.wait_for(lambda: len(job.losses()) > 3 and JobState.RUNNING in states(job))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(60) == 0
    assert states(job)[2:] == [JobState.RUNNING, JobState.STOPPING, JobState.CANCELLED]
    assert isinstance(job.records()[-2], CheckpointRecord)
    assert job.states()[-1].message.startswith("stopped at step")
    assert job.processes() == []


def test_a_job_that_completes_while_it_is_canceled_succeeds(new_job: NewJob) -> None:
    job = new_job()
    runner = job.start("finish_when_stopped")
    job.wait_for(lambda: bool(job.losses()))
    runner.send_signal(signal.SIGTERM)
    runner.wait(60)
    assert states(job)[-2:] == [JobState.STOPPING, JobState.SUCCEEDED]


def test_a_worker_that_does_not_stop_is_killed_after_the_grace_period(new_job: NewJob) -> None:
    job = new_job()
    runner = job.start("ignore_stop", "--stop-grace", "0.5")
    job.wait_for(lambda: bool(job.losses()))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(60) == 0
    assert states(job)[-1] is JobState.CANCELLED
    assert "0.5 s" in job.states()[-1].message
    assert job.processes() == []


def test_a_job_that_compiles_ends_without_waiting_for_the_compiler(new_job: NewJob) -> None:
    job = new_job()
    runner = job.start("compile_forever")
    job.wait_for(lambda: states(job)[-1] is JobState.RUNNING)
    runner.send_signal(signal.SIGTERM)
    # Far less than the 120 s that workers have to save a checkpoint.
    assert runner.wait(60) == 0
    stopping, ended = job.states()[-2:]
    assert stopping.message == "stop requested: there is nothing to save"
    assert (ended.state, ended.message) == (
        JobState.CANCELLED,
        "canceled before a step was done: there was nothing to save",
    )
    assert job.processes() == []


def test_sigterm_to_any_guard_stops_the_job_cleanly(new_job: NewJob) -> None:
    job = new_job(count=2)
    runner = job.start("run_until_stopped")
    # Rank 0 may report losses before the other worker has started.
    job.wait_for(lambda: JobState.RUNNING in states(job))
    job.workers()[1].parent().send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    assert runner.wait(60) == 0
    assert states(job)[-2:] == [JobState.STOPPING, JobState.CANCELLED]


def test_canceling_a_starting_job_ends_it_at_once(new_job: NewJob) -> None:
    job = new_job(count=2)
    runner = job.start("tests.jobs.late:succeed")
    job.wait_for(lambda: JobState.STARTING in states(job))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(60) == 0
    assert states(job)[-1] is JobState.CANCELLED
    assert job.processes() == []


def test_an_ended_job_does_not_run_until_it_is_queued_again(new_job: NewJob) -> None:
    job = new_job(max_restarts=0)
    assert job.run("raise_defect") is JobState.FAILED
    before = len(job.events())
    assert job.run("succeed") is JobState.FAILED
    assert len(job.events()) == before
    with EventWriter(job.folder.events, job.folder.job_id) as writer:
        writer.append(StateRecord(JobState.QUEUED, "resumed"), 1)
    assert job.run("succeed") is JobState.SUCCEEDED
    assert job.events()[-1].attempt == 2
    assert_numbered(job)


def test_an_unreadable_spec_fails_the_job(new_job: NewJob) -> None:
    job = new_job()
    body = json.loads(job.folder.spec.read_text())
    job.folder.spec.write_text(json.dumps({**body, "kind": "NONSENSE"}))
    assert job.run("succeed") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert error.kind == "INTERNAL"
    assert "NONSENSE" in (job.folder.logs / "runner.log").read_text()


def test_every_rank_has_a_log(new_job: NewJob) -> None:
    job = new_job(count=2, max_restarts=0)
    job.run("always_die")
    names = {path.name for path in (job.folder.logs / "attempt-1").iterdir()}
    assert names == {"worker_0.log", "worker_1.log"}
    assert os.path.getsize(job.folder.logs / "runner.log") >= 0


def test_devices_that_the_launcher_refuses_fail_the_job_with_the_field(new_job: NewJob) -> None:
    job = new_job(target="ascend", launcher="rank-table", rank_table="/nonexistent/table.json")
    assert job.run("succeed", cluster="mindspore") is JobState.FAILED
    error = job.states()[-1].error
    assert error is not None
    assert (error.kind, error.field) == ("INVALID_FIELD", "spec.devices.rank_table")
