"""Resuming: once, where there are devices, and whatever the daemon lived to note of it."""

from __future__ import annotations

import asyncio

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import JobState, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind
from multigrain.specs.training import TrainingSpec
from multigrain_server.jobs.files import append_event
from multigrain_server.jobs.submission import CheckedSpec, Submission
from tests.server.jobs.conftest import JobSide, MakeSide, states


async def _cancelled(side: JobSide) -> str:
    job = await side.submit(events="10000", pause="0.01")
    side.jobs.cancel(job.job_id)
    await side.ended(job.job_id)
    return job.job_id


async def test_of_two_that_resume_a_job_together_one_is_told_that_it_goes_on(
    side: JobSide,
) -> None:
    job = await _cancelled(side)
    calls = [side.jobs.resume(job) for _ in range(2)]
    told = await asyncio.gather(*calls, return_exceptions=True)
    (refused,) = [answer for answer in told if isinstance(answer, MultigrainError)]
    assert refused.kind is ErrorKind.WRONG_STATE
    assert states(side, job).count("QUEUED") == 2


async def test_a_job_is_not_resumed_where_its_devices_are_no_more(make_side: MakeSide) -> None:
    spec = TrainingSpec.model_validate({"devices": {"target": "gpu", "count": 2}})

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, spec)

    first = make_side("gpu:0-1")
    job = await first.jobs.submit(Submission(JobKind.TRAINING, "a"), check)
    first.jobs.cancel(job.job_id)
    await first.ended(job.job_id)
    await first.supervisor.stop()
    second = make_side("gpu:0")
    with pytest.raises(MultigrainError, match="this server has 1") as caught:
        await second.jobs.resume(job.job_id)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert second.jobs.get(job.job_id).state is JobState.CANCELLED


async def test_a_resumed_job_is_not_ended_by_the_cancel_of_its_earlier_run(
    make_side: MakeSide,
) -> None:
    first = make_side()
    job = await _cancelled(first)
    await first.supervisor.stop()
    row = first.store.get(job)
    assert row is not None
    assert row.job.cancel_requested
    # All that a daemon did which died in ResumeJob.
    assert append_event(JobFolder(first.root / "jobs" / job), StateRecord(JobState.QUEUED), 1)
    second = make_side()
    await second.until(job, lambda j: j.state is JobState.RUNNING)
    assert states(second, job)[-3:] == ["QUEUED", "STARTING", "RUNNING"]
