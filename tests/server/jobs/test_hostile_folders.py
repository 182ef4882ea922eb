"""Hostile files in job folders: that job is refused by name, and holds up no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.log import EventWriter, is_locked, newest_record
from multigrain.events.records import JobState, StateRecord
from multigrain.jobs.failure import log_tail
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import TrainingSpec
from multigrain_server.jobs.event_feed import EventFeed
from multigrain_server.jobs.files import append_event, create_folder, load_cancel, load_lease
from multigrain_server.jobs.runner_process import RunnerProcess
from multigrain_server.status.event_log import Curves, latest_warnings
from tests.hostile_files import KINDS, alarm, put
from tests.server.jobs.conftest import JobServer, MakeServer

FILES = (
    *("spec.json", "events.jsonl", "runner.json", "lease.json", "cancel", "image_limits.json"),
    *("workers", "workers/runner.log", "checkpoints", "results", "weights"),
    *(".tmp-cancel", ".tmp-lease.json", ".tmp-image_limits.json"),
)
# What a job is known by. Without the others it is as if they did not exist.
NEEDED = ("spec.json", "events.jsonl")


def job_id_of(kind: str) -> str:
    return f"train-20260101-000000-{kind.replace(' ', '-')}"


def make_job_folder(jobs_dir: Path, kind: str, state: JobState = JobState.SUCCEEDED) -> JobFolder:
    """A job that has ended, or is queued."""
    request = JobRequest(
        job_id=job_id_of(kind),
        kind=JobKind.TRAINING,
        name=kind,
        create_time="2026-01-01T00:00:00Z",
        training=TrainingSpec(),
    )
    folder = create_folder(jobs_dir, request, "queued")
    if state is not JobState.QUEUED:
        append_event(folder, StateRecord(state, "done"), 1)
    return folder


async def _events(server: JobServer, job_id: str) -> list[int]:
    async with aclosing(server.jobs.event_feed(job_id).batches(0, frozenset(), False)) as batches:
        return [line.seq async for batch in batches for line in batch.lines]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("name", FILES)
async def test_a_hostile_file_in_a_job_folder_holds_up_nothing(
    tmp_path: Path, make_server: MakeServer, name: str, indexed: bool
) -> None:
    """One job for each kind of file, found by the first daemon or known to an earlier one."""
    jobs_dir = tmp_path / "jobs"
    jobs_dir.mkdir()
    healthy = make_job_folder(jobs_dir, "healthy")
    folders = {kind: make_job_folder(jobs_dir, kind) for kind in KINDS}
    if indexed:
        await make_server(command=("false",)).stop()
    for kind, folder in folders.items():
        put(folder.path / name, kind)
    with alarm(), capture_logs() as logs:
        server = make_server(command=("false",))
        assert await _events(server, healthy.job_id) == [1, 2]
        for kind, folder in folders.items():
            await _look_at(server, folder.job_id, refused=name in NEEDED and not indexed)
            if name not in NEEDED:
                assert await _events(server, folder.job_id) == [1, 2], kind
    if name in NEEDED and not indexed:
        named = {
            log.get("folder") for log in logs if log["event"] == "folder is not a job; skipped"
        }
        # An empty log, or one of other text, is that of a job without events.
        harmless = {"empty", "broken", "unreadable", "binary", "deep", "deep objects", "number"}
        wanted = set(KINDS) - (harmless if name == "events.jsonl" else set())
        assert named >= {job_id_of(kind) for kind in wanted if kind != "unreadable"}
    assert server.jobs.get(healthy.job_id).state is JobState.SUCCEEDED


async def _look_at(server: JobServer, job_id: str, *, refused: bool) -> None:
    """Everything that a caller can do with a job ends, if need be with an error of its own."""
    folder = JobFolder(server.root / "jobs" / job_id)
    for path in (folder.events, folder.logs / "runner.log"):
        Curves().of(path)
        latest_warnings(path)
    found: list[ErrorKind] = []
    try:
        server.jobs.get(job_id)
        await _events(server, job_id)
        server.jobs.cancel(job_id)
    except MultigrainError as error:
        found.append(error.kind)
    try:
        await server.jobs.resume(job_id)
    except MultigrainError as error:
        found.append(error.kind)
    unknown = {ErrorKind.NOT_FOUND} if refused else set()
    assert set(found) <= {ErrorKind.STORAGE, ErrorKind.WRONG_STATE} | unknown


@pytest.mark.parametrize(
    "name", ["cancel", ".tmp-cancel", "runner.json", "workers/runner.log", "image_limits.json"]
)
async def test_a_queued_job_with_a_hostile_file_is_canceled_or_reported(
    tmp_path: Path, make_server: MakeServer, name: str
) -> None:
    (tmp_path / "jobs").mkdir()
    folders = [
        make_job_folder(tmp_path / "jobs", kind, JobState.QUEUED) for kind in ("healthy", *KINDS)
    ]
    for kind, folder in zip(KINDS, folders[1:], strict=True):
        put(folder.path / name, kind)
    with alarm():
        server = make_server(devices="cpu:1", command=("sleep", "0"))
        for folder in folders:
            server.jobs.cancel(folder.job_id)
        for folder in folders:
            assert (await server.ended(folder.job_id)).state is JobState.CANCELLED


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_of_a_job_folder_ends(tmp_path: Path, kind: str) -> None:
    (tmp_path / "jobs").mkdir()
    folder = make_job_folder(tmp_path / "jobs", kind)
    for path in (folder.events, folder.runner, folder.lease, folder.cancel):
        put(path, kind)
    put(folder.logs / "runner.log", kind)
    with alarm():
        assert load_lease(folder) is None
        assert not load_cancel(folder, "2026")
        assert RunnerProcess(folder).pid is None
        log_tail(folder.logs / "runner.log")
        assert Curves().of(folder.events) == ()
        assert latest_warnings(folder.events) == ()
        errors = [
            _error_of(lambda: is_locked(folder.events)),
            _error_of(lambda: newest_record(folder.events, StateRecord)),
            _error_of(lambda: EventFeed(folder.job_id, folder.events).poll()),
            _error_of(lambda: EventWriter(folder.events, folder.job_id).close()),
        ]
    if kind in ("pipe", "socket", "folder", "endless", "null", "loop"):
        assert all(isinstance(error, OSError | MultigrainError) for error in errors), errors
    assert all(error is None or str(error) for error in errors)


def _error_of(function: Callable[[], object]) -> Exception | None:
    try:
        function()
    except (OSError, MultigrainError) as error:
        return error
    return None


def test_an_event_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    """Its incomplete last line would be cut off, whatever file it is."""
    victim = tmp_path / "victim"
    victim.write_text("no newline")
    (tmp_path / "events.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="it is a link and not a regular file"):
        EventWriter(tmp_path / "events.jsonl", "job")
    assert victim.read_text() == "no newline"


async def test_a_log_that_is_cut_off_under_its_subscribers_ends_their_streams(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path, "job") as writer:
        for _ in range(3):
            writer.append(StateRecord(JobState.QUEUED, "queued"), 0)
    feed = EventFeed("job", path)
    feed.poll()
    path.write_bytes(b"")
    with alarm():
        async with aclosing(feed.batches(0, frozenset(), False)) as batches:
            with pytest.raises(MultigrainError, match="can no longer be read") as caught:
                await anext(batches)
    assert caught.value.kind is ErrorKind.STORAGE


async def test_unreadable_lines_do_not_fill_the_log_of_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"not an event\n" * 5000)
    with capture_logs() as logs:
        EventFeed("job", path).poll()
    assert 0 < len(logs) < 50
