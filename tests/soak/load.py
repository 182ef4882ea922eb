"""What goes on during a soak: everything that people do with a daemon, again and again."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from multigrain_client import AsyncClient, JobCancelled
from tests.e2e.daemon import Daemon, processes_below
from tests.engine.bundles import TinyNetwork, write_bundle
from tests.faults.killing import kill_in_the_middle, starter
from tests.faults.serving import Seen, callers

MODELS = ("tiny", "other")
SWAPPED = "swapped"
ALIAS = "production"
_ENGINE_KILL_SECONDS = 60.0


def prepare(folder: Path) -> Path:
    """Writes the bundles and a dataset below ``folder``; the dataset's root."""
    # Two versions of the same network, so that an answer is right whichever gave it.
    for version in (1, 2):
        models = folder / "data" / "models"
        write_bundle(models, SWAPPED, version, network=TinyNetwork(seed=9))
    images = folder / "images" / "class"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(b"not looked at: the runner is a double")
    return folder / "images"


class Load:
    """All of it, against one daemon.

    Args:
        daemon: with ``MODELS`` loaded.
        images: a dataset that it may read.
    """

    def __init__(self, daemon: Daemon, images: Path) -> None:
        self.done: Counter[str] = Counter()
        self.seen = Seen()
        self._daemon = daemon
        self._images = images
        self._chance = random.Random(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Until the end of the block. Raises what one of them raised."""
        address = self._daemon.address
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient(address))
            await client.load_model(f"{SWAPPED}@1")
            await client.set_alias(ALIAS, f"{SWAPPED}@1")
            job = await self._endless(client)
            parts = (
                self._swap(client),
                self._train(client),
                self._train(client),
                self._move_bundles(client),
                self._kill_clients(job),
                self._kill_engines(),
            )
            tasks = [asyncio.create_task(part) for part in parts]
            for model in (*MODELS, ALIAS):
                await stack.enter_async_context(callers(address, model, 1, self.seen))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                for end in ends:
                    if isinstance(end, Exception):
                        raise end

    async def _endless(self, client: AsyncClient) -> str:
        job = await self._start(client, events=10_000_000, pause=0.2)
        return job.job_id

    async def _start(self, client: AsyncClient, *, events: int, pause: float) -> Any:
        return await client.start_training(
            preset="digits-demo",
            dataset={"train_path": str(self._images), "val_path": ""},
            labels={"events": str(events), "pause": str(pause)},
        )

    async def _swap(self, client: AsyncClient) -> None:
        for new, old in itertools.cycle(((2, 1), (1, 2))):
            await client.load_model(f"{SWAPPED}@{new}")
            await client.set_alias(ALIAS, f"{SWAPPED}@{new}")
            with suppress(Exception):  # it goes by itself when it is replaced
                await client.unload_model(f"{SWAPPED}@{old}")
            self.done["swaps"] += 1
            await asyncio.sleep(3)

    async def _train(self, client: AsyncClient) -> None:
        while True:
            job = await self._start(client, events=60, pause=0.05)
            if self._chance.random() < 0.5:
                await asyncio.sleep(self._chance.uniform(0, 2))
                with suppress(Exception):  # it may have ended
                    await client.cancel(job)
                self.done["cancels"] += 1
            async for _ in client.stream_events(job):
                pass
            with suppress(JobCancelled):
                await client.wait(job)
            await until_done(lambda: client.delete_job(job))  # noqa: B023
            self.done["trainings"] += 1

    async def _move_bundles(self, client: AsyncClient) -> None:
        archive = self._images.parent / "bundle.tar"
        while True:
            await client.download_model("tiny", archive)
            copy = await client.import_model(archive, name="copy")
            await client.delete_model(f"copy@{copy.version}")
            archive.unlink()
            self.done["imports"] += 1
            await asyncio.sleep(2)

    async def _kill_clients(self, job: str) -> None:
        clients = starter()
        for number in itertools.count():
            address = self._daemon.address
            await asyncio.to_thread(kill_in_the_middle, clients, number, address, job, self._chance)
            self.done["killed clients"] += 1
            await asyncio.sleep(0.5)

    async def _kill_engines(self) -> None:
        while True:
            await asyncio.sleep(_ENGINE_KILL_SECONDS)
            for process in await asyncio.to_thread(engines, self._daemon):
                with suppress(psutil.Error):
                    if any(f"/models/{MODELS[1]}/" in part for part in process.cmdline()):
                        process.kill()
                        self.done["killed engines"] += 1


def engines(daemon: Daemon) -> list[psutil.Process]:
    """Processes that hold models now; their decoder processes have the same command line."""
    found = {}
    for process in processes_below(daemon.data_dir):
        with suppress(psutil.Error):
            if "multigrain.engine" in process.cmdline():
                found[process.pid] = process.ppid(), process
    return [process for parent, process in found.values() if parent not in found]


async def until_done(attempt: Callable[[], Coroutine[Any, Any, None] | Awaitable[None]]) -> None:
    """Again for ten seconds: a job that has just ended may not be deleted yet."""
    for _ in range(100):
        with suppress(Exception):
            return await attempt()
        await asyncio.sleep(0.1)
    await attempt()
