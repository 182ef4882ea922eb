"""A caller with large calls in a loop, and another one beside it, on a server with an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture
from tests.server.grpc.serving import serving
from tests.server.serving.harness import small_config

pytestmark = pytest.mark.process


async def test_a_caller_that_fills_the_queue_has_no_other_one_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    large = EmbedRequest(images=[picture(seed) for seed in range(16)])
    refused: list[grpc.StatusCode] = []

    async def hog(stub: EmbeddingServiceStub) -> None:
        while True:
            try:
                await stub.Embed(large)
            except grpc.aio.AioRpcError as error:
                refused.append(error.code())
                await asyncio.sleep(0.01)

    async with serving(
        tmp_path, small_config(queue_items=64, max_images_per_request=16, decode_threads=1)
    ) as s:
        await s.manager.load("tiny")
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(s.address, options) as other:
            tasks = [asyncio.create_task(hog(s.embedding)) for _ in range(12)]
            async with asyncio.timeout(120):
                while len(refused) < 12:  # noqa: ASYNC110 - the queue is full from now on
                    await asyncio.sleep(0.01)
            stub = EmbeddingServiceStub(other)
            for seed in range(30):
                answer = await stub.Embed(EmbedRequest(images=[picture(100 + seed)]))
                assert len(answer.results) == 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
