"""Clients are killed in the middle of uploads, streams and batches: the daemon drops their work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.daemon import Daemon
from tests.faults import killed_client
from tests.faults.killing import kill_in_the_middle, starter
from tests.faults.serving import amount, samples, serving_daemon, until

pytestmark = pytest.mark.process

AT_ONCE = 4
WORK = (
    "multigrain_calls_in_flight",
    "multigrain_event_subscribers",
    "multigrain_inflight_items",
)
HELD = ("multigrain_tasks", "process_open_fds")
# Of the daemon: buffers of the allocator that come and go, and so much for each client.
SLACK_BYTES, EACH_BYTES = 48 << 20, 8 << 10


@contextmanager
def daemon_with_a_job(folder: Path) -> Iterator[tuple[Daemon, str]]:
    """Serves a model, and runs a job that goes on writing events."""
    images = folder / "images" / "class"
    images.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "0.png")
    daemon = serving_daemon(folder, roots=[folder / "images"], module="tests.server.fake_daemon")
    try:
        with daemon.client() as client:
            job = client.start_training(
                preset="digits-demo",
                dataset={"train_path": str(folder / "images"), "val_path": ""},
                labels={"events": "1000000", "pause": "0.02"},
            )
        yield daemon, job.job_id
    finally:
        daemon.end()


async def kill(clients: ForkServerContext, count: int, daemon: Daemon, job: str) -> None:
    numbers = iter(range(count))
    chance = random.Random(count)

    async def one_after_the_other() -> None:
        for number in numbers:
            await asyncio.to_thread(
                kill_in_the_middle, clients, number, daemon.address, job, chance
            )

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


async def test_nothing_is_left_of_clients_that_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The allocator gives back what is free, so that its habits are not taken for a leak.
    for name, value in (
        ("ARENA_MAX", "1"),
        ("TRIM_THRESHOLD_", "65536"),
        ("MMAP_THRESHOLD_", "65536"),
    ):
        monkeypatch.setenv(f"MALLOC_{name}", value)
    kills, clients = amount(56, 1000), starter()
    with daemon_with_a_job(tmp_path) as (daemon, job):

        def held(known: dict[str, float] | None) -> dict[str, float] | None:
            """What it holds, once that is no more than ``known``, and it works on nothing."""
            now = samples(daemon)
            if any(now[name] for name in WORK):
                return None
            if known is not None and any(now[name] > known[name] for name in HELD):
                return None
            return now

        async def settled(known: dict[str, float] | None = None) -> dict[str, float]:
            found: list[dict[str, float] | None] = []

            async def looks_so() -> bool:
                found.append(await asyncio.to_thread(held, known))
                return found[-1] is not None

            await until(looks_so)
            assert found[-1] is not None
            return found[-1]

        await kill(clients, 2 * len(killed_client.KINDS), daemon, job)
        before = await settled()
        await kill(clients, kills, daemon, job)
        after = await settled(before)
        grown = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
        assert grown < SLACK_BYTES + EACH_BYTES * kills
        assert after["multigrain_engine_restarts_total"] == 0
        assert {path.name for path in (daemon.data_dir / "models").iterdir()} <= {"tiny", ".aside"}
        # A thread may be about to remove the last of them.
        await until(lambda: not any((daemon.data_dir / "models" / ".aside").iterdir()))
        with daemon.client() as client:
            assert client.embed([killed_client.picture(1)]).shape[0] == 1
