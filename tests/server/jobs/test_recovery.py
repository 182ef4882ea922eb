"""What becomes of jobs whose runner or daemon has died."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from multigrain.events.records import JobState
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind
from multigrain.specs.training import TrainingSpec
from multigrain_server.jobs.store import JobStore
from multigrain_server.jobs.submission import CheckedSpec, Submission
from tests.server.jobs.conftest import JobServer, MakeServer, seqs


async def test_a_crashed_runner_is_restarted_and_finishes(server: JobServer) -> None:
    job = await server.submit(events="6", crash_at="3")
    job = await server.ended(job.job_id)
    assert (job.state, job.view.attempt) == (JobState.SUCCEEDED, 2)
    numbers = seqs(server, job.job_id)
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_runner_that_crashes_without_progress_fails_the_job(server: JobServer) -> None:
    job = await server.submit(mute="1")
    job = await server.ended(job.job_id)
    assert job.state is JobState.FAILED
    assert job.view.error is not None
    assert job.view.error.kind == "RUNNER_LOST"
    # As often as max_runner_crashes says.
    assert job.view.error.log_tail.count("mute") == 3
    assert "exited 3 times in a row" in job.view.error.message


async def test_crashes_with_progress_in_between_do_not_fail_the_job(server: JobServer) -> None:
    job = await server.submit(events="5", crash_each="1")
    job = await server.ended(job.job_id)
    assert (job.state, job.view.attempt) == (JobState.SUCCEEDED, 6)


async def test_the_restart_delay_doubles_with_each_crash(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server("cpu:0")
    job = await server.submit()
    await server.supervisor.stop()
    active = server.supervisor.active[job.job_id]
    pauses = []
    with monkeypatch.context() as still:
        still.setattr(asyncio.get_running_loop(), "time", lambda: 0.0)
        for _ in range(3):
            server.supervisor._runner_exited(active)
            pauses.append(active.not_before)
    assert pauses == pytest.approx([0.02, 0.04, 0.08])


async def test_a_runner_that_cannot_be_started_fails_the_job(make_server: MakeServer) -> None:
    server = make_server(command=("/nonexistent/runner",))
    job = await server.submit()
    job = await server.ended(job.job_id)
    assert job.view.error is not None
    assert job.view.error.kind == "RUNNER_LOST"


async def test_a_later_daemon_recovers_a_running_job(make_server: MakeServer) -> None:
    first = make_server("cpu:1")
    job = await first.submit(events="60", pause="0.01")
    await first.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    pid = first.supervisor.active[job.job_id].runner.pid  # type: ignore[union-attr]
    await first.supervisor.stop()
    second = make_server("cpu:1")
    runner = second.supervisor.active[job.job_id].runner
    assert runner is not None
    assert runner.pid == pid
    assert second.leases.free("cpu") == ()
    found = await second.ended(job.job_id)
    assert (found.state, found.view.attempt) == (JobState.SUCCEEDED, 1)
    assert second.leases.free("cpu") == (0,)


async def test_a_runner_that_died_with_the_daemon_is_restarted(make_server: MakeServer) -> None:
    first = make_server()
    job = await first.submit(events="40", pause="0.01")
    await first.until(job.job_id, lambda j: j.view.last_seq > 5)
    await first.supervisor.stop()
    runner = first.supervisor.active[job.job_id].runner
    assert runner is not None
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGKILL)
    assert runner.child is not None
    runner.child.wait()
    second = make_server()
    found = await second.ended(job.job_id)
    assert (found.state, found.view.attempt) == (JobState.SUCCEEDED, 2)


async def test_a_reused_pid_is_not_taken_for_the_runner(
    make_server: MakeServer,
) -> None:
    first = make_server("cpu:0")
    job = await first.submit(events="1")
    await first.supervisor.stop()
    folder = JobFolder(first.root / "jobs" / job.job_id)
    # This process lives, but it started at another time.
    folder.runner.write_text(f'{{"pid": {os.getpid()}, "started": "b/1", "written": ""}}')
    second = make_server("cpu:1")
    assert (await second.ended(job.job_id)).state is JobState.SUCCEEDED


async def test_a_deleted_index_is_rebuilt_from_the_job_folders(make_server: MakeServer) -> None:
    first = make_server()
    job = await first.submit(request_id="r1", name="first")
    await first.ended(job.job_id)
    await first.supervisor.stop()
    for path in first.root.glob("state.db*"):
        path.unlink()
    (first.root / "jobs" / ".new-half").mkdir()
    second = make_server()
    found = second.jobs.get(job.job_id)
    assert (found.state, found.request.name) == (JobState.SUCCEEDED, "first")
    assert (await second.submit(request_id="r1", name="first")).job_id == job.job_id
    assert not (first.root / "jobs" / ".new-half").exists()


async def test_a_running_job_keeps_its_devices_without_the_index(
    make_server: MakeServer, tmp_path: Path
) -> None:
    spec = TrainingSpec.model_validate({"devices": {"target": "gpu", "count": 2}})

    async def check() -> CheckedSpec:
        return CheckedSpec(JobKind.TRAINING, spec)

    labels = {"events": "100000", "pause": "0.02"}
    first = make_server("gpu:0-5")
    jobs = [
        await first.jobs.submit(Submission(JobKind.TRAINING, name, labels=labels), check)
        for name in "abc"
    ]
    for job in jobs:
        await first.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    first.jobs.cancel(jobs[0].job_id)
    await first.ended(jobs[0].job_id)
    assert not JobFolder(tmp_path / "jobs" / jobs[0].job_id).lease.exists()
    await first.stop()
    for name in os.listdir(tmp_path):
        if name.startswith("state.db"):
            os.unlink(tmp_path / name)

    second = make_server("gpu:0-5")
    held = {lease.owner: lease.units for lease in second.leases.of_kind("gpu")}
    assert held == {jobs[1].job_id: (2, 3), jobs[2].job_id: (4, 5)}
    assert second.leases.free("gpu") == (0, 1)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "gpu", "units": ["x"]}'])
async def test_an_unreadable_lease_does_not_prevent_the_start(
    make_server: MakeServer, tmp_path: Path, text: str
) -> None:
    first = make_server("cpu:1")
    job = await first.submit(events="100000", pause="0.02")
    await first.until(job.job_id, lambda j: j.state is JobState.RUNNING)
    await first.supervisor.stop()
    JobFolder(tmp_path / "jobs" / job.job_id).lease.write_text(text)
    assert make_server("cpu:1").leases.free("cpu") == ()


async def test_an_unreadable_event_log_does_not_stop_other_jobs(
    make_server: MakeServer,
) -> None:
    first = make_server("cpu:0")
    bad, good = [await first.submit(events="1") for _ in range(2)]
    await first.supervisor.stop()
    record = first.root / "jobs" / bad.job_id / "events.jsonl"
    record.unlink()
    record.mkdir()
    second = make_server("cpu:1")
    assert set(second.supervisor.active) == {good.job_id}
    assert (await second.ended(good.job_id)).state is JobState.SUCCEEDED


async def test_views_of_another_version_are_derived_again(make_server: MakeServer) -> None:
    first = make_server()
    job = await first.submit(events="4")
    before = (await first.ended(job.job_id)).view
    first.database.execute("UPDATE jobs SET view='{}'")
    first.database.execute("UPDATE job_view_format SET format='older'")
    second = make_server()
    assert second.jobs.get(job.job_id).view == before


async def test_ended_jobs_are_not_decoded_at_startup(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_server()
    job = await first.submit(events="4")
    await first.ended(job.job_id)
    decoded: list[str] = []
    monkeypatch.setattr(JobStore, "get", lambda self, job_id: decoded.append(job_id))
    make_server()
    assert decoded == []


async def test_the_queue_keeps_its_order_after_a_restart(
    make_server: MakeServer,
) -> None:
    first = make_server("cpu:0")
    waiting = [(await first.submit(name=str(number))).job_id for number in range(8)]
    second = make_server("cpu:0")
    assert list(second.supervisor.active) == waiting
