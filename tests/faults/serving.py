"""A real daemon that serves, and what its callers see of a fault."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tests.e2e.daemon import Daemon
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture

SECONDS = 60.0
ALONE = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


def amount(usual: int, full: int) -> int:
    """How often a fault is injected: ``full`` times by ``make faults``."""
    return full if os.environ.get("MULTIGRAIN_FAULTS") == "full" else usual


def serving_daemon(
    folder: Path,
    models: Sequence[str] = ("tiny",),
    flags: Sequence[str] = (),
    *,
    roots: Sequence[Path] = (),
    module: str = "multigrain_server.main",
) -> Daemon:
    """Started, with these small models loaded."""
    for number, name in enumerate(models, 1):
        write_bundle(folder / "data" / "models", name, number)
    light = ("--serving-decode-threads=1", "--serving-engine-threads=1")
    daemon = Daemon(folder, roots, (*light, *flags), module).start()
    with daemon.client() as client:
        for name in models:
            client.load_model(name)
    return daemon


def samples(daemon: Daemon) -> dict[str, float]:
    """The series without labels, and the sums of those with labels."""
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(daemon.metrics()):
        for sample in family.samples:
            sums[sample.name] += sample.value
    return dict(sums)


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Fails if it does not come true within a minute."""
    end = time.monotonic() + SECONDS
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.02)


@dataclass
class Seen:
    """What callers saw: statuses, and answers that were not what they should have been."""

    codes: Counter[str] = field(default_factory=Counter)
    #: Details of failures.
    reasons: Counter[str] = field(default_factory=Counter)
    without_delay: int = 0
    wrong: int = 0
    #: Times of the first failure and the last answer.
    refused_at: float = float("inf")
    answered_at: float = 0.0

    @property
    def answered(self) -> int:
        return self.codes["OK"]


@asynccontextmanager
async def callers(
    address: str, model: str, count: int, seen: Seen, *, until_refused: bool = False
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Callers that send the next image on every answer, each on a connection of its own.

    They end with the block, or, with ``until_refused``, when nobody listens any more.
    """
    data = picture(1)
    request = EmbedRequest(images=[data], model=model)
    async with grpc.aio.insecure_channel(address, ALONE) as channel:
        first = await EmbeddingServiceStub(channel).Embed(request, timeout=SECONDS)
    expected = first.results[0].embedding.data

    async def call() -> None:
        async with grpc.aio.insecure_channel(address, ALONE) as channel:
            embed = EmbeddingServiceStub(channel).Embed
            while True:
                try:
                    answer = await embed(request, timeout=SECONDS)
                except grpc.aio.AioRpcError as error:
                    seen.refused_at = min(seen.refused_at, time.monotonic())
                    seen.codes[error.code().name] += 1
                    reason = (error.details() or "").split(":")[0]
                    seen.reasons[reason] += 1
                    trailers = dict(error.trailing_metadata() or ())
                    if "grpc-retry-pushback-ms" not in trailers:
                        seen.without_delay += 1
                    if until_refused and "shutting down" not in reason:
                        return
                    await asyncio.sleep(0 if until_refused else 0.02)
                else:
                    seen.codes["OK"] += 1
                    seen.answered_at = time.monotonic()
                    (result,) = answer.results
                    found = np.frombuffer(result.embedding.data, "<f4")
                    if result.status.code or not np.allclose(
                        found, np.frombuffer(expected, "<f4"), atol=1e-4
                    ):
                        seen.wrong += 1

    tasks = [asyncio.create_task(call()) for _ in range(count)]
    try:
        yield tasks
    finally:
        if not until_refused:
            for task in tasks:
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
