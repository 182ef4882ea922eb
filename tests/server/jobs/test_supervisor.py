"""The life of a job: queue, runner, events and end; errors of one job do not affect others."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventWriter, is_locked, read_events
from multigrain.events.records import JobState, StateRecord
from multigrain.images.limits import ImageLimits, read_limits
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind
from multigrain.specs.training import TrainingSpec
from multigrain_server.jobs import service
from multigrain_server.jobs.files import create_folder
from multigrain_server.jobs.submission import CheckedSpec, Submission
from multigrain_server.jobs.supervisor import DiskSpace
from tests.server.jobs.conftest import JobServer, MakeServer, seqs, states


async def test_a_job_runs_from_queued_to_succeeded(server: JobServer) -> None:
    job = await server.submit(events="5")
    assert job.state is JobState.QUEUED
    job = await server.ended(job.job_id)
    assert states(server, job.job_id) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert job.view.last_loss is not None
    assert (job.view.last_loss.step, job.view.progress.fraction) == (5, 1.0)
    assert (job.view.exit_code, job.view.attempt, job.view.last_seq) == (0, 1, 9)
    assert job.view.start_time
    assert job.view.end_time


async def test_every_attempt_has_the_image_limits_of_the_daemon(make_server: MakeServer) -> None:
    limits = ImageLimits(1000, 178_000_000)
    server = make_server(limits=limits)
    job = await server.submit(end="FAILED")
    await server.ended(job.job_id)
    path = JobFolder(server.root / "jobs" / job.job_id).image_limits
    assert read_limits(path) == limits
    await server.stop()
    raised = ImageLimits(2000, 200_000_000)
    server = make_server(limits=raised)
    await server.jobs.resume(job.job_id)
    await server.ended(job.job_id)
    assert read_limits(path) == raised


async def test_a_failed_job_keeps_its_error_and_logs_a_warning(server: JobServer) -> None:
    with capture_logs() as logs:
        job = await server.submit(end="FAILED")
        job = await server.ended(job.job_id)
        async with asyncio.timeout(60):
            while not (ended := [x for x in logs if x["event"] == "job ended"]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert [(line["log_level"], line["state"]) for line in ended] == [("warning", "FAILED")]
    assert job.state is JobState.FAILED
    assert job.view.error is not None
    assert (job.view.error.kind, job.view.error.rank) == ("DIVERGED", 1)


async def test_a_job_that_waits_for_a_device_names_the_job_that_holds_it(
    make_server: MakeServer,
) -> None:
    server = make_server("cpu:1")
    first = await server.submit(events="50", pause="0.01")
    second = await server.submit(events="1")
    third = await server.submit(events="1")
    wanted = f"waiting for a free CPU slot: 1 of 1 in use by job {first.job_id}"
    assert second.state is JobState.QUEUED
    assert second.state_message == wanted
    assert server.jobs.get(third.job_id).state_message == f"{wanted}; 1 before it in the queue"
    queued = next(read_events(server.root / "jobs" / second.job_id / "events.jsonl")).record
    assert isinstance(queued, StateRecord)
    assert queued.message == wanted
    ends = [(await server.ended(job.job_id)).view for job in (first, second, third)]
    assert ends[0].end_time < ends[1].start_time < ends[1].end_time < ends[2].start_time


async def test_a_job_without_a_device_of_its_kind_waits(make_server: MakeServer) -> None:
    server = make_server("cpu:0,gpu:3")
    waits = await server.submit(events="1")
    assert server.jobs.get(waits.job_id).state is JobState.QUEUED
    assert "this server has 0" in server.jobs.get(waits.job_id).state_message


async def test_a_canceled_submission_leaves_one_complete_job(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> JobFolder:
        started.set()
        assert go_on.wait(60)
        return create_folder(*arguments)

    monkeypatch.setattr(service, "create_folder", slow)
    call = asyncio.create_task(server.submit(request_id="r1", events="1"))
    assert await asyncio.to_thread(started.wait, 60)
    call.cancel()
    retry = asyncio.create_task(server.submit(request_id="r1", events="1"))
    await asyncio.sleep(0.05)  # the retry must wait for the first one
    go_on.set()
    again = await retry
    with pytest.raises(asyncio.CancelledError):
        await call
    assert os.listdir(server.root / "jobs") == [again.job_id]
    assert (await server.ended(again.job_id)).state is JobState.SUCCEEDED


async def test_a_job_that_needs_too_many_devices_does_not_block_others(
    make_server: MakeServer,
) -> None:
    spec = TrainingSpec.model_validate({"devices": {"target": "gpu", "count": 2}})

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, spec)

    first = make_server("gpu:0-1")
    held = await first.jobs.submit(
        Submission(JobKind.TRAINING, "a", labels={"events": "1000", "pause": "0.01"}), check
    )
    large = await first.jobs.submit(Submission(JobKind.TRAINING, "b"), check)
    first.jobs.cancel(held.job_id)
    await first.supervisor.stop()
    second = make_server("gpu:0")
    await second.ended(held.job_id)
    spec = TrainingSpec.model_validate({"devices": {"target": "gpu", "count": 1}})
    small = await second.jobs.submit(Submission(JobKind.TRAINING, "c"), check)
    assert (await second.ended(small.job_id)).state is JobState.SUCCEEDED
    waits = second.jobs.get(large.job_id)
    assert (waits.state, waits.state_message) == (
        JobState.QUEUED,
        "waiting for 2 GPUs: this server has 1",
    )


async def test_the_queue_of_a_device_kind_keeps_its_order(
    make_server: MakeServer,
) -> None:
    server = make_server("gpu:0-1")

    async def submit(body: str, gpus: int, **labels: str) -> str:
        spec = TrainingSpec.model_validate({"devices": {"target": "gpu", "count": gpus}})

        async def check() -> CheckedSpec:
            return CheckedSpec(JobKind.TRAINING, spec)

        job = await server.jobs.submit(Submission(JobKind.TRAINING, body, labels=labels), check)
        return job.job_id

    held = await submit("a", 1, events="10000", pause="0.01")
    large, small = await submit("b", 2), await submit("c", 1)
    await server.until(held, lambda j: j.state is JobState.RUNNING)
    server.supervisor.schedule()
    assert server.jobs.get(small).state_message == (
        f"waiting for a free GPU: 1 of 2 in use by job {held}; 1 before it in the queue"
    )
    server.jobs.cancel(held)
    first, second = [(await server.ended(job)).view for job in (large, small)]
    assert first.end_time < second.start_time


async def test_events_read_by_a_subscriber_first_are_counted_and_indexed(
    make_server: MakeServer,
) -> None:
    server = make_server("cpu:0")
    job = await server.submit()
    active = server.supervisor.active[job.job_id]
    server.supervisor._check(active)
    # From here on: the supervisor's own round may come before the one below.
    kinds: list[str] = []
    server.supervisor._on_event = kinds.append
    with EventWriter(active.folder.events, job.job_id) as writer:
        writer.append(StateRecord(JobState.STARTING), 1)
    await active.feed.catch_up()
    server.supervisor._check(active)
    assert kinds == ["state"]
    row = server.store.get(job.job_id)
    assert row is not None
    assert row.job.view.state is JobState.STARTING


async def test_a_resumed_job_is_a_new_attempt_with_continuous_seq(server: JobServer) -> None:
    job = await server.submit(events="10000", pause="0.01")
    await server.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    server.jobs.cancel(job.job_id)
    await server.ended(job.job_id)
    again = await server.jobs.resume(job.job_id)
    assert again.state is JobState.QUEUED
    assert again.view.end_time == ""
    running = await server.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    assert running.view.attempt == 2
    server.jobs.cancel(job.job_id)
    await server.ended(job.job_id)
    numbers = seqs(server, job.job_id)
    assert numbers == list(range(1, len(numbers) + 1))


async def test_no_lock_is_left_after_the_end_of_a_job(server: JobServer) -> None:
    job = await server.submit(end="FAILED")
    await server.ended(job.job_id)
    assert not is_locked(server.root / "jobs" / job.job_id / "events.jsonl")
    await asyncio.sleep(0)


async def test_a_job_that_cannot_be_indexed_does_not_exist(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(server.store, "insert", full)
    with pytest.raises(MultigrainError, match="disk is full") as caught:
        await server.submit()
    assert caught.value.kind is ErrorKind.STORAGE
    assert os.listdir(server.root / "jobs") == []


async def test_a_job_without_a_folder_can_be_deleted(server: JobServer) -> None:
    job = await server.submit(events="1")
    await server.ended(job.job_id)
    shutil.rmtree(server.root / "jobs" / job.job_id)
    await server.jobs.delete(job.job_id)
    with pytest.raises(MultigrainError, match="no job"):
        server.jobs.get(job.job_id)


async def test_an_error_of_one_job_does_not_delay_others(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"events": "100000", "pause": "0.05"}
    bad, good = [await server.submit(**labels) for _ in range(2)]
    await server.supervisor.stop()  # the rounds are made here
    supervisor = server.supervisor
    options = replace(supervisor._options, error_retry_seconds=1000.0, save_seconds=0.0)
    monkeypatch.setattr(supervisor, "_options", options)
    looked: list[str] = []
    save_view = server.store.save_view

    def full(job_id: str, *rest: Any) -> None:
        looked.append(job_id)
        if job_id == bad.job_id:
            raise sqlite3.OperationalError("database or disk is full")
        save_view(job_id, *rest)

    monkeypatch.setattr(server.store, "save_view", full)
    for active in supervisor.active.values():
        active.saved_seq = -1
    for _ in range(5):
        supervisor.active[good.job_id].saved_seq = -1
        await supervisor.check_all()
    assert looked.count(bad.job_id) == 1
    assert looked.count(good.job_id) == 5
    # Once the time is over it is looked at again.
    supervisor.active[bad.job_id].retry_at = 0.0
    await supervisor.check_all()
    assert looked.count(bad.job_id) == 2


async def test_a_scheduling_error_does_not_delay_jobs(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await server.submit(events="100000", pause="0.05")
    await server.supervisor.stop()
    supervisor = server.supervisor
    monkeypatch.setattr(
        supervisor, "_options", replace(supervisor._options, error_retry_seconds=1e3)
    )
    asked: list[int] = []
    looked: list[str] = []
    monkeypatch.setattr(supervisor, "schedule", lambda: asked.append(1) or 1 / 0)
    monkeypatch.setattr(supervisor, "_check", lambda active: looked.append(active.job_id))
    for _ in range(3):
        await supervisor.check_all()
    assert asked == [1]
    assert looked == [job.job_id] * 3


async def test_the_index_is_only_written_for_new_events(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server("cpu:0")
    job = await server.submit()
    await server.supervisor.stop()
    supervisor = server.supervisor
    monkeypatch.setattr(supervisor, "_options", replace(supervisor._options, save_seconds=0.0))
    supervisor.active[job.job_id].saved_seq = -1
    saved: list[str] = []
    monkeypatch.setattr(server.store, "save_view", lambda job_id, *_: saved.append(job_id))
    for _ in range(3):
        await supervisor.check_all()
    assert saved == [job.job_id]


async def test_a_defect_with_one_job_does_not_stop_the_others(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = await server.submit(events="100000", pause="0.05")
    monkeypatch.setattr(server.supervisor.active[bad.job_id].feed, "poll", lambda **_: 1 / 0)
    good = await server.submit(events="1")
    assert (await server.ended(good.job_id)).state is JobState.SUCCEEDED


async def test_the_supervisor_stops_with_an_unwritable_index(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await server.submit(events="100000", pause="0.05") for _ in range(2)]
    await server.supervisor.stop()

    def full(*_: Any) -> None:
        raise MultigrainError(ErrorKind.STORAGE, "the index of jobs cannot be written")

    for active in server.supervisor.active.values():
        active.saved_seq = -1
    monkeypatch.setattr(server.store, "save_view", full)
    await server.supervisor.stop()
    assert set(server.supervisor.active) == {job.job_id for job in jobs}


@pytest.mark.parametrize("call", ["delete", "resume"])
async def test_a_job_folder_without_permission_is_reported_and_kept(
    server: JobServer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    job = await server.submit(events="10000", pause="0.01")
    server.jobs.cancel(job.job_id)
    await server.ended(job.job_id)

    def refused(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    word = {"delete": "move_to_trash", "resume": "append_event"}[call]
    monkeypatch.setattr(f"multigrain_server.jobs.service.{word}", refused)
    with pytest.raises(MultigrainError) as caught:
        await getattr(server.jobs, call)(job.job_id)
    assert caught.value.kind is ErrorKind.STORAGE
    assert f"the job cannot be {call}d (Permission denied); let uid" in caught.value.message
    monkeypatch.undo()
    assert server.jobs.get(job.job_id).state is JobState.CANCELLED
    await server.jobs.delete(job.job_id)


@pytest.mark.parametrize(("user", "full"), [(0, False), (1000, True)], ids=["root", "user"])
def test_space_that_is_reserved_for_root_counts_for_root_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, full: bool
) -> None:
    # Ten blocks are left for ordinary users, a million more for root.
    found = list(os.statvfs(tmp_path))
    found[:5] = [4096, 4096, 2_000_000, 1_000_010, 10]  # bsize, frsize, blocks, bfree, bavail
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(found))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert DiskSpace().full(tmp_path) is full


def test_a_disk_is_full_below_64_kib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(blocks: int) -> os.statvfs_result:
        return os.statvfs_result([4096, 4096, 2_000_000, blocks, blocks, 0, 0, 0, 0, 255])

    monkeypatch.setattr(os, "statvfs", lambda _path: left(15))
    assert DiskSpace().full(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _path: left(16))
    assert not DiskSpace().full(tmp_path)
