"""Statistics of a loaded model."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from multigrain.errors import MultigrainError
from tests.engine.bundles import write_bundle
from tests.engine.held import hold
from tests.engine.pictures import picture
from tests.server.serving.harness import embed, harness

pytestmark = pytest.mark.process


async def test_requests_images_and_batches_are_counted_with_their_times(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    async with harness(tmp_path) as h:
        await h.manager.load("tiny")
        statistics = h.manager.catalog.route("").statistics
        assert (statistics.last_ms, statistics.executions) == (0, 0)
        hold(h.manager.catalog.route("").engine, 3)
        answers = await asyncio.gather(
            h.embed(picture(1), b"no image"), h.embed(picture(2), picture(3))
        )
        with pytest.raises(MultigrainError):
            await h.embed(picture(1), resolution=7)
        h.service.encoded(answers[0], 0.25)
        assert statistics.images == 3
        assert (statistics.success.count, statistics.fail.count) == (2, 1)
        assert list(statistics.batches) == [3]
        batch = statistics.batches[3]
        assert statistics.executions == batch.infer.count == batch.prepare.count == 1
        # Both requests waited for the same pass.
        assert statistics.infer.ns == 2 * batch.infer.ns
        assert statistics.success.ns >= statistics.prepare.ns + statistics.infer.ns > 0
        assert statistics.encode.ns == 250_000_000
        assert abs(statistics.last_ms / 1000 - time.time()) < 60
        await h.manager.unload("tiny")
        h.service.encoded(answers[1], 0.5)  # the model may have gone meanwhile
        assert statistics.encode.count == 1
        await h.manager.load("tiny")
        assert h.manager.catalog.route("").statistics.success.count == 0


async def test_a_canceled_request_counts_as_failed(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    async with harness(tmp_path) as h:
        await h.manager.load("tiny")
        hold(h.manager.catalog.route("").engine, 2)
        task = asyncio.create_task(h.service.infer(embed(picture(1))))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert h.manager.catalog.route("").statistics.fail.count == 1
