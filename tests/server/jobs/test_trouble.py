"""What goes wrong with one job is no matter of the others."""

from __future__ import annotations

import errno
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import JobState
from multigrain_server.jobs.supervisor import DiskSpace
from tests.server.jobs.conftest import JobSide


async def test_a_job_that_cannot_be_looked_after_holds_up_no_other(
    side: JobSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"events": "100000", "pause": "0.05"}
    bad, good = [await side.submit(**labels) for _ in range(2)]
    await side.supervisor.stop()  # the rounds are made here
    supervisor = side.supervisor
    options = replace(supervisor._options, error_retry_seconds=1000.0, save_seconds=0.0)
    monkeypatch.setattr(supervisor, "_options", options)
    looked: list[str] = []
    save_view = side.store.save_view

    def full(job_id: str, *rest: Any) -> None:
        looked.append(job_id)
        if job_id == bad.job_id:
            raise sqlite3.OperationalError("database or disk is full")
        save_view(job_id, *rest)

    monkeypatch.setattr(side.store, "save_view", full)
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


async def test_a_queue_that_cannot_be_looked_after_holds_up_no_job(
    side: JobSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await side.submit(events="100000", pause="0.05")
    await side.supervisor.stop()
    supervisor = side.supervisor
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


async def test_a_defect_with_one_job_does_not_stop_the_others(
    side: JobSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = await side.submit(events="100000", pause="0.05")
    monkeypatch.setattr(side.supervisor.active[bad.job_id].feed, "poll", lambda **_: 1 / 0)
    good = await side.submit(events="1")
    assert (await side.ended(good.job_id)).state is JobState.SUCCEEDED


async def test_a_daemon_stops_also_where_the_index_cannot_be_written(
    side: JobSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await side.submit(events="100000", pause="0.05") for _ in range(2)]
    await side.supervisor.stop()

    def full(*_: Any) -> None:
        raise MultigrainError(ErrorKind.STORAGE, "the index of jobs cannot be written")

    for active in side.supervisor.active.values():
        active.saved_seq = -1
    monkeypatch.setattr(side.store, "save_view", full)
    await side.supervisor.stop()
    assert set(side.supervisor.active) == {job.job_id for job in jobs}


@pytest.mark.parametrize("call", ["delete", "resume"])
async def test_a_job_folder_of_another_user_is_told_and_stays(
    side: JobSide, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    job = await side.submit(events="10000", pause="0.01")
    side.jobs.cancel(job.job_id)
    await side.ended(job.job_id)

    def refused(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    word = {"delete": "move_to_trash", "resume": "append_event"}[call]
    monkeypatch.setattr(f"multigrain_server.jobs.service.{word}", refused)
    with pytest.raises(MultigrainError) as caught:
        await getattr(side.jobs, call)(job.job_id)
    assert caught.value.kind is ErrorKind.STORAGE
    assert f"the job cannot be {call}d (Permission denied); let uid" in caught.value.message
    monkeypatch.undo()
    assert side.jobs.get(job.job_id).state is JobState.CANCELLED
    await side.jobs.delete(job.job_id)


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
