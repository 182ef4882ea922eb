"""Cancelling: at once, in order, and across the death of the daemon."""

from __future__ import annotations

import asyncio

import pytest

from multigrain.events.records import JobState
from multigrain_server.jobs.runner_process import RunnerProcess
from tests.server.jobs.conftest import FAKE_RUNNER, JobSide, MakeSide, states


async def test_cancel_of_a_queued_job_ends_it_at_once(make_side: MakeSide) -> None:
    side = make_side("cpu:0")
    job = await side.submit()
    assert side.jobs.cancel(job.job_id).state is JobState.CANCELLED
    assert side.jobs.cancel(job.job_id).state is JobState.CANCELLED
    assert states(side, job.job_id) == ["QUEUED", "CANCELLED"]


async def test_events_that_the_daemon_writes_are_counted_as_others_are(
    make_side: MakeSide,
) -> None:
    side = make_side("cpu:0")
    kinds: list[str] = []
    side.supervisor._on_event = kinds.append
    job = await side.submit()
    side.jobs.cancel(job.job_id)
    assert kinds == ["state"]


async def test_cancel_of_a_running_job_lets_its_runner_save(side: JobSide) -> None:
    job = await side.submit(events="10000", pause="0.01")
    await side.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    assert side.jobs.cancel(job.job_id).state is JobState.STOPPING
    assert side.jobs.cancel(job.job_id).state is JobState.STOPPING
    job = await side.ended(job.job_id)
    assert (job.state, job.state_message) == (JobState.CANCELLED, "as asked")
    assert states(side, job.job_id)[-2:] == ["STOPPING", "CANCELLED"]


async def test_cancel_just_after_the_start_is_not_lost(side: JobSide) -> None:
    job = await side.submit(events="10000", pause="0.01")
    side.jobs.cancel(job.job_id)
    job = await side.ended(job.job_id)
    assert job.state is JobState.CANCELLED


async def test_a_cancel_that_the_daemon_did_not_live_to_pass_on_is_not_lost(
    make_side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_side()
    job = await first.submit(events="100000", pause="0.01")
    await first.until(job.job_id, lambda j: j.view.last_seq > 3)
    with monkeypatch.context() as patch:
        patch.setattr(RunnerProcess, "terminate", lambda _: False)
        first.jobs.cancel(job.job_id)  # and the daemon dies here
        await first.supervisor.stop()
    second = make_side()
    ended = await second.ended(job.job_id)
    assert (ended.state, ended.state_message) == (JobState.CANCELLED, "as asked")


async def test_a_queued_job_whose_cancel_the_daemon_did_not_finish_never_runs(
    make_side: MakeSide,
) -> None:
    first = make_side("cpu:0")
    job = await first.submit(events="3")
    first.store.save_cancel(job.job_id, True)
    await first.supervisor.stop()
    second = make_side("cpu:1")
    await second.ended(job.job_id)
    assert states(second, job.job_id) == ["QUEUED", "CANCELLED"]


async def test_a_runner_that_has_not_said_who_it_is_hears_of_a_cancel_once_it_has(
    make_side: MakeSide,
) -> None:
    first = make_side()
    job = await first.submit(events="100000", pause="0.01")
    await first.until(job.job_id, lambda j: j.view.last_seq > 3)
    identity = first.root / "jobs" / job.job_id / "runner.json"
    identity.rename(aside := identity.with_suffix(".aside"))
    await first.supervisor.stop()
    second = make_side()  # it sees the lock, but no pid
    assert second.jobs.cancel(job.job_id).state is JobState.STOPPING
    await asyncio.sleep(0.05)
    aside.rename(identity)
    assert (await second.ended(job.job_id)).state is JobState.CANCELLED


async def test_a_runner_that_makes_itself_known_late_is_looked_after(make_side: MakeSide) -> None:
    side = make_side("cpu:0")
    job = await side.submit(events="3")
    folder = side.supervisor.active[job.job_id].folder
    late = await asyncio.create_subprocess_exec(*FAKE_RUNNER, str(folder.path))
    assert (await side.ended(job.job_id)).state is JobState.SUCCEEDED
    await late.wait()
