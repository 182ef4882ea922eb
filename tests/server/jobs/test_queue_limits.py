"""The queue of jobs is bounded, and nobody has all of it."""

from __future__ import annotations

import asyncio

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.job_request import JobKind
from multigrain.specs.training import TrainingSpec
from multigrain_server.jobs.submission import CheckedSpec, Submission
from tests.server.jobs.conftest import JobServer, MakeServer

# No device: all jobs stay queued.
NONE = "cpu:0"


async def fill(server: JobServer, client: str, most: int = 1000) -> int:
    """Queues jobs until one is refused; how many were not."""
    for number in range(most):
        try:
            await server.submit(body=f"{client} {number}", client=client)
        except MultigrainError as error:
            if error.kind is not ErrorKind.OVERLOADED or not error.retry_after:
                raise
            return number
    return most


async def test_one_client_has_a_limit_and_others_are_not_refused(make_server: MakeServer) -> None:
    server = make_server(NONE, max_queued=40, max_queued_per_client=10)
    assert await fill(server, "ada") == 10
    assert await fill(server, "bob", 5) == 5
    with pytest.raises(MultigrainError, match=r"ada has 10 queued jobs, and jobs\.max_queued_per"):
        await server.submit(client="ada")


async def test_the_last_places_are_kept_for_clients_with_few_jobs(make_server: MakeServer) -> None:
    server = make_server(NONE, max_queued=20, max_queued_per_client=20)
    assert await fill(server, "ada") == 18
    with pytest.raises(MultigrainError, match=r"18 jobs are queued, and jobs\.max_queued is 20, "):
        await server.submit(client="ada")
    assert await fill(server, "bob") == 2


async def test_a_repeated_submission_is_answered_though_the_queue_is_full(
    make_server: MakeServer,
) -> None:
    server = make_server(NONE, max_queued=20, max_queued_per_client=3)
    first = await server.submit("key", client="ada")
    assert await fill(server, "ada") == 2
    assert (await server.submit("key", client="ada")).job_id == first.job_id


async def test_a_canceled_job_leaves_its_place(make_server: MakeServer) -> None:
    server = make_server("cpu:1", max_queued=20, max_queued_per_client=3)
    server.leases.acquire("another job", TrainingSpec().devices)
    first = await server.submit(client="ada")
    await fill(server, "ada")
    server.jobs.cancel(first.job_id)
    await server.ended(first.job_id)
    assert await fill(server, "ada") == 1
    # Its resumption needs a place again.
    with pytest.raises(MultigrainError) as caught:
        await server.jobs.resume(first.job_id)
    assert caught.value.kind is ErrorKind.OVERLOADED


async def test_submissions_at_the_same_time_count(make_server: MakeServer) -> None:
    server = make_server(NONE, max_queued=100, max_queued_per_client=5)
    go = asyncio.Event()

    async def submit(number: int) -> bool:
        async def check() -> CheckedSpec:
            await go.wait()
            return CheckedSpec(JobKind.TRAINING, TrainingSpec())

        request = Submission(JobKind.TRAINING, str(number), client="ada")
        try:
            await server.jobs.submit(request, check)
        except MultigrainError as error:
            return error.kind is not ErrorKind.OVERLOADED
        return True

    tasks = [asyncio.create_task(submit(number)) for number in range(20)]
    await asyncio.sleep(0)
    go.set()
    assert sum(await asyncio.gather(*tasks)) == 5
    assert len(server.supervisor.active) == 5


async def test_queued_jobs_count_after_a_restart(make_server: MakeServer) -> None:
    first = make_server(NONE, max_queued=20, max_queued_per_client=3)
    assert await fill(first, "ada") == 3
    await first.stop()
    second = make_server(NONE, max_queued=20, max_queued_per_client=3)
    assert await fill(second, "ada") == 0
    assert await fill(second, "bob", 2) == 2
