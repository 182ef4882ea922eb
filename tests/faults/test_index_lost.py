"""The job index is lost, truncated or invalid: it is rebuilt from the job folders, unchanged."""

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
from multigrain.images.limits import DEFAULT_LIMITS
from multigrain.jobs.job_folder import JobFolder
from multigrain_server.config import ServerConfig
from multigrain_server.database import open_index
from multigrain_server.jobs.recovery import index_folders
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.main import rebuild_index
from tests.server.jobs.conftest import JobServer, MakeServer, make_server
from tests.server.process import DaemonProcess

__all__ = ["make_server"]


def rows(root: Path) -> list[tuple[object, ...]]:
    """All rows of the index."""
    with closing(sqlite3.connect(root / "state.db")) as connection:
        return connection.execute("SELECT * FROM jobs ORDER BY job_id").fetchall()


def more_events(server: JobServer, job_id: str, *records: Record) -> None:
    with EventWriter(JobFolder(server.root / "jobs" / job_id).events, job_id) as writer:
        for record in records:
            writer.append(record, 1)


async def busy_server(make_server: MakeServer) -> JobServer:
    """Jobs in every state, one with all kinds of events; their daemon and runners were killed."""
    server = make_server("cpu:2")
    done = await server.submit(request_id="r1", name="Fir\u00e9", team="a b", events="9")
    await server.ended(done.job_id)
    failed = await server.submit(request_id="r2", name="x", end="FAILED")
    await server.ended(failed.job_id)
    rich = await server.submit(name="rich", mute="1", events="0")
    await server.ended(rich.job_id)
    more_events(
        server,
        rich.job_id,
        EvaluationRecord({"top1": 0.5}, step=3),
        CheckpointRecord(3, 1, "step-00000003", 10, best=True),
        ArtifactRecord("m", 4, ("a", "b"), 7),
        StateRecord(JobState.FAILED, "after all"),
    )
    endless = {"events": "1000000", "pause": "0.02"}
    stopped = await server.submit(request_id="r3", **endless)
    await server.until(stopped.job_id, lambda job: job.state is JobState.RUNNING)
    server.jobs.cancel(stopped.job_id)
    await server.ended(stopped.job_id)
    resumed = await server.submit(name="again", **endless)
    await server.until(resumed.job_id, lambda job: job.state is JobState.RUNNING)
    server.jobs.cancel(resumed.job_id)
    await server.ended(resumed.job_id)
    await server.jobs.resume(resumed.job_id)
    running = await server.submit(name="running", **endless)
    for job in (resumed, running):
        await server.until(job.job_id, lambda job: job.state is JobState.RUNNING)
    await server.submit(request_id="r4", name="queued")
    # Canceled by a daemon that dies before its signal reaches the runner.
    server.kill_runners()
    server.jobs.cancel(running.job_id)
    await server.supervisor.stop()
    server.jobs.get(rich.job_id)
    server.store.save_view(rich.job_id, *view_of(server, rich.job_id))
    for active in server.supervisor.active.values():
        active.feed.poll()
        server.store.save_view(active.job_id, active.feed.view, active.feed.offset)
    server.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return server


def view_of(server: JobServer, job_id: str):  # type: ignore[no-untyped-def]
    feed = server.feeds.new(job_id)
    feed.poll()
    return feed.view, feed.offset


async def test_the_rebuilt_index_equals_the_old_one(make_server: MakeServer) -> None:
    server = await busy_server(make_server)
    before = rows(server.root)
    states = {state for _, _, _, _, state, *_ in before}
    assert states == {"SUCCEEDED", "FAILED", "CANCELLED", "RUNNING", "QUEUED"}
    assert {row[-1] for row in before} == {0, 1}
    (server.root / "jobs" / "stray").mkdir()
    report = rebuild_index(ServerConfig(data_dir=server.root))
    assert rows(server.root) == before
    assert f"{len(before)} jobs indexed" in report
    assert "1 QUEUED" in report
    assert "skipped jobs/stray" in report
    (old,) = server.root.glob("state.db.old-*[0-9]")  # SQLite's own files end with letters
    assert old.name in report
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT * FROM jobs ORDER BY job_id").fetchall() == before


async def test_a_truncated_index_is_rebuilt_at_startup(make_server: MakeServer) -> None:
    server = make_server()
    for number in range(4):
        await server.ended((await server.submit(request_id=f"r{number}", end="FAILED")).job_id)
    await server.supervisor.stop()
    server.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = rows(server.root)
    whole = (server.root / "state.db").read_bytes()
    other = b"".join(whole[at : at + 4096] for at in range(len(whole) - 4096, -1, -4096))
    damaged = [whole[:cut] for cut in range(0, len(whole), 2048)]
    damaged += [b"not a database" * 1000, other, bytes(len(whole))]
    for content in damaged:
        for path in server.root.glob("state.db*"):
            path.unlink()
        (server.root / "state.db").write_bytes(content)
        with closing(open_index(server.root / "state.db", [SCHEMA])) as database:
            assert database.damage() == ""
            index_folders(server.root / "jobs", JobStore(database))
        assert rows(server.root) == before


async def test_a_truncated_write_ahead_log_is_recovered_from_the_folders(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server()
    for number in range(3):
        job = await server.submit(request_id=f"r{number}", events="3")
        await server.ended(job.job_id)
    await server.supervisor.stop()
    log = (server.root / "state.db-wal").read_bytes()  # of a daemon that is killed now
    left = [log[:cut] for cut in range(0, len(log), max(1, len(log) // 12))]
    crashed = tmp_path / "crashed"
    shutil.copytree(server.root / "jobs", crashed / "jobs")
    index = (server.root / "state.db").read_bytes()
    before = rows(server.root)
    for rest in left:
        for path in crashed.glob("state.db*"):
            path.unlink()
        (crashed / "state.db").write_bytes(index)
        (crashed / "state.db-wal").write_bytes(rest)
        after = JobServer(crashed, "cpu:1", ("/nonexistent/runner",), DEFAULT_LIMITS, 1000, 1000)
        assert after.supervisor.active == {}
        await after.stop()
        assert rows(crashed) == before


@pytest.mark.process
def test_a_damaged_index_is_moved_aside_and_reported(
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
async def test_invalid_rows_are_reindexed(make_server: MakeServer, column: str) -> None:
    first = make_server()
    job = await first.submit(request_id="r", events="3")
    await first.ended(job.job_id)
    await first.supervisor.stop()
    before = rows(first.root)
    first.database.execute(f"UPDATE jobs SET {column}='nonsense', events_bytes=-1")
    second = make_server()
    assert second.jobs.get(job.job_id).state is JobState.SUCCEEDED
    await second.supervisor.stop()
    assert rows(first.root) == before
