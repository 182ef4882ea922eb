"""The index of jobs is lost, cut, or not one: it is made anew from the folders, and is equal."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from multigrain.events.log import EventWriter
from multigrain.events.records import (
    ArtifactRecord,
    CheckpointRecord,
    EvaluationRecord,
    JobState,
    Record,
    StateRecord,
)
from multigrain.jobs.job_folder import JobFolder
from multigrain_server.config import ServerConfig
from multigrain_server.database import open_index
from multigrain_server.jobs.recovery import index_folders
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.main import rebuild_index
from tests.server.jobs.conftest import JobSide, MakeSide, make_side
from tests.server.process import DaemonProcess

__all__ = ["make_side"]


def rows(root: Path) -> list[tuple[object, ...]]:
    """The whole index."""
    with closing(sqlite3.connect(root / "state.db")) as connection:
        return connection.execute("SELECT * FROM jobs ORDER BY job_id").fetchall()


def more_events(side: JobSide, job_id: str, *records: Record) -> None:
    with EventWriter(JobFolder(side.root / "jobs" / job_id).events, job_id) as writer:
        for record in records:
            writer.append(record, 1)


async def lively(make_side: MakeSide) -> JobSide:
    """Jobs in every state, one with all kinds of events; their daemon and runners were killed."""
    side = make_side("cpu:2")
    done = await side.submit(request_id="r1", name="Fir\u00e9", team="a b", events="9")
    await side.ended(done.job_id)
    failed = await side.submit(request_id="r2", name="x", end="FAILED")
    await side.ended(failed.job_id)
    rich = await side.submit(name="rich", mute="1", events="0")
    await side.ended(rich.job_id)
    more_events(
        side,
        rich.job_id,
        EvaluationRecord({"top1": 0.5}, step=3),
        CheckpointRecord(3, 1, "step-00000003", 10, best=True),
        ArtifactRecord("m", 4, ("a", "b"), 7),
        StateRecord(JobState.FAILED, "after all"),
    )
    endless = {"events": "1000000", "pause": "0.02"}
    stopped = await side.submit(request_id="r3", **endless)
    await side.until(stopped.job_id, lambda job: job.state is JobState.RUNNING)
    side.jobs.cancel(stopped.job_id)
    await side.ended(stopped.job_id)
    resumed = await side.submit(name="again", **endless)
    await side.until(resumed.job_id, lambda job: job.state is JobState.RUNNING)
    side.jobs.cancel(resumed.job_id)
    await side.ended(resumed.job_id)
    await side.jobs.resume(resumed.job_id)
    running = await side.submit(name="running", **endless)
    for job in (resumed, running):
        await side.until(job.job_id, lambda job: job.state is JobState.RUNNING)
    await side.submit(request_id="r4", name="queued")
    # Ended by a daemon that dies before its runner obeys.
    side.supervisor.active[running.job_id].stop_sent = True
    side.jobs.cancel(running.job_id)
    side.kill_runners()
    await side.supervisor.stop()
    side.jobs.get(rich.job_id)
    side.store.save_view(rich.job_id, *view_of(side, rich.job_id))
    for active in side.supervisor.active.values():
        active.feed.poll()
        side.store.save_view(active.job_id, active.feed.view, active.feed.offset)
    side.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return side


def view_of(side: JobSide, job_id: str):  # type: ignore[no-untyped-def]
    feed = side.feeds.new(job_id)
    feed.poll()
    return feed.view, feed.offset


async def test_the_rebuilt_index_equals_the_old_one(make_side: MakeSide) -> None:
    side = await lively(make_side)
    before = rows(side.root)
    states = {state for _, _, _, _, state, *_ in before}
    assert states == {"SUCCEEDED", "FAILED", "CANCELLED", "RUNNING", "QUEUED"}
    assert {row[-1] for row in before} == {0, 1}
    (side.root / "jobs" / "stray").mkdir()
    said = rebuild_index(ServerConfig(data_dir=side.root))
    assert rows(side.root) == before
    assert f"{len(before)} jobs indexed" in said
    assert "1 QUEUED" in said
    assert "skipped jobs/stray" in said
    (old,) = side.root.glob("state.db.old-*[0-9]")  # SQLite's own files end with letters
    assert old.name in said
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT * FROM jobs ORDER BY job_id").fetchall() == before


async def test_an_index_cut_anywhere_is_made_anew_by_itself(make_side: MakeSide) -> None:
    side = make_side()
    for number in range(4):
        await side.ended((await side.submit(request_id=f"r{number}", end="FAILED")).job_id)
    await side.supervisor.stop()
    side.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = rows(side.root)
    whole = (side.root / "state.db").read_bytes()
    other = b"".join(whole[at : at + 4096] for at in range(len(whole) - 4096, -1, -4096))
    damaged = [whole[:cut] for cut in range(0, len(whole), 2048)]
    damaged += [b"not a database" * 1000, other, bytes(len(whole))]
    for content in damaged:
        for path in side.root.glob("state.db*"):
            path.unlink()
        (side.root / "state.db").write_bytes(content)
        with closing(open_index(side.root / "state.db", [SCHEMA])) as database:
            assert database.damage() == ""
            index_folders(side.root / "jobs", JobStore(database))
        assert rows(side.root) == before


async def test_what_the_write_ahead_log_lost_comes_back_from_the_folders(
    make_side: MakeSide, tmp_path: Path
) -> None:
    side = make_side()
    for number in range(3):
        job = await side.submit(request_id=f"r{number}", events="3")
        await side.ended(job.job_id)
    await side.supervisor.stop()
    log = (side.root / "state.db-wal").read_bytes()  # of a daemon that is killed now
    left = [log[:cut] for cut in range(0, len(log), max(1, len(log) // 12))]
    crashed = tmp_path / "crashed"
    shutil.copytree(side.root / "jobs", crashed / "jobs")
    index = (side.root / "state.db").read_bytes()
    before = rows(side.root)
    for rest in left:
        for path in crashed.glob("state.db*"):
            path.unlink()
        (crashed / "state.db").write_bytes(index)
        (crashed / "state.db-wal").write_bytes(rest)
        after = JobSide(crashed, "cpu:1", ("/nonexistent/runner",))
        assert after.supervisor.active == {}
        await after.stop()
        assert rows(crashed) == before


@pytest.mark.process
def test_a_daemon_with_a_damaged_index_starts_says_so_and_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "state.db").write_bytes(b"not a database" * 100)
    daemon = DaemonProcess(data)
    try:
        daemon.wait_ready()
        assert "index damaged; rebuilding it from the job folders" in daemon.log.read_text()
        (old,) = data.glob("state.db.damaged-*")
        assert old.read_bytes() == b"not a database" * 100
        command = [sys.executable, "-m", "multigrain_server.main", f"--data-dir={data}"]
        run = subprocess.run(
            [*command, "--rebuild-index"], capture_output=True, text=True, check=False
        )
        assert run.returncode == 1
        assert "another daemon" in run.stderr
        daemon.popen.terminate()
        assert daemon.popen.wait(60) == 0
        run = subprocess.run(
            [*command, "--rebuild-index"], capture_output=True, text=True, check=False
        )
        assert (run.returncode, run.stdout.splitlines()[0]) == (
            0,
            "0 jobs indexed",
        )
    finally:
        daemon.end()


@pytest.mark.parametrize("column", ["state", "request"])
async def test_rows_that_are_no_jobs_are_indexed_anew(make_side: MakeSide, column: str) -> None:
    first = make_side()
    job = await first.submit(request_id="r", events="3")
    await first.ended(job.job_id)
    await first.supervisor.stop()
    before = rows(first.root)
    first.database.execute(f"UPDATE jobs SET {column}='nonsense', events_bytes=-1")
    second = make_side()
    assert second.jobs.get(job.job_id).state is JobState.SUCCEEDED
    await second.supervisor.stop()
    assert rows(first.root) == before
