"""Bulk embedding: order, bounds, back-pressure, the same admission."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.images import ImageRequest
from multigrain_server.serving.stream import RequestStream
from tests.engine.bundles import write_bundle
from tests.engine.held import hold
from tests.engine.pictures import picture
from tests.server.serving.harness import embed, harness, small_config, until, vectors

pytestmark = pytest.mark.process


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


class Requests:
    """A stream of requests that counts how many were read."""

    def __init__(self, requests: list[ImageRequest]) -> None:
        self._requests = requests
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[ImageRequest]:
        for request in self._requests:
            self.read += 1
            yield request


async def test_one_answer_for_each_request_in_order(root: Path) -> None:
    sizes = [1, 3, 2, 1, 5, 1, 1, 4, 2, 1]
    requests = [
        embed(*(picture(100 * at + number) for number in range(size)))
        for at, size in enumerate(sizes)
    ]
    async with harness(root) as h:
        await h.manager.load("tiny")
        stream = RequestStream(h.service, 8)
        answers = [answer async for answer in stream.replies(Requests(requests))]
        assert [len(answer.results) for answer in answers] == sizes
        for request, answer in zip(requests, answers, strict=True):
            alone = await h.embed(*request.images)
            np.testing.assert_allclose(vectors(alone), vectors(answer), rtol=1e-4)


async def test_no_more_requests_are_read_than_the_window_allows(root: Path) -> None:
    requests = Requests([embed(picture(seed), picture(seed + 50)) for seed in range(20)])
    async with harness(root) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 1000)
        answers = RequestStream(h.service, 6).replies(requests)
        first = asyncio.ensure_future(anext(answers))
        await until(lambda: engine.in_flight == 6)
        await asyncio.sleep(0.05)
        # Three requests of two images are in flight, a fourth is read and waits.
        assert requests.read == 4
        assert h.service.admission.items == 6
        hold(engine, 0)
        await first
        assert len([answer async for answer in answers]) == 19


async def test_a_reply_that_is_not_taken_stops_the_reading(root: Path) -> None:
    requests = Requests([embed(picture(seed)) for seed in range(50)])
    async with harness(root) as h:
        await h.manager.load("tiny")
        answers = RequestStream(h.service, 4).replies(requests)
        await anext(answers)
        await asyncio.sleep(0.2)
        assert requests.read <= 6
        await answers.aclose()
        await until(lambda: h.service.admission.items == 0)


async def test_streams_pass_the_admission_of_unary_calls(root: Path) -> None:
    async with harness(root, small_config(queue_items=4, max_images_per_request=4)) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 1000)
        inside = asyncio.create_task(h.embed(*(picture(seed) for seed in range(3))))
        await until(lambda: h.service.admission.items == 3)
        answers = RequestStream(h.service, 100).replies(
            Requests([embed(picture(1)), embed(picture(2)), embed(picture(3))])
        )
        first = asyncio.ensure_future(anext(answers))
        await until(lambda: h.service.admission.items == 4)
        await asyncio.sleep(0.02)
        hold(engine, 0)
        # Requests that were admitted before the refusal are answered; then the error is raised.
        assert len((await first).results) == 1
        with pytest.raises(MultigrainError) as caught:
            await anext(answers)
        assert caught.value.kind is ErrorKind.OVERLOADED
        await inside
        assert h.service.admission.items == 0


async def test_leaving_a_stream_drops_its_images(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 1000)
        answers = RequestStream(h.service, 100).replies(
            Requests([embed(picture(seed)) for seed in range(5)])
        )
        first = asyncio.ensure_future(anext(answers))
        await until(lambda: engine.in_flight == 5)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await until(lambda: engine.in_flight == 0)
        assert h.service.admission.items == 0
        assert h.metric("multigrain_cancelled_items_total", where="queue") == 5


async def test_a_reply_that_the_caller_has_not_taken_is_still_in_the_window() -> None:
    begun: list[int] = []

    class Echo:
        async def infer(self, request: SimpleNamespace, /) -> int:
            begun.append(request.number)
            return request.number

    async def requests() -> AsyncIterator[SimpleNamespace]:
        for number in range(10):
            yield SimpleNamespace(number=number, images=[b"x"])

    async with aclosing(RequestStream(Echo(), 2).replies(requests())) as answers:
        assert await anext(answers) == 0
        for _ in range(20):
            await asyncio.sleep(0)
        assert begun == [0, 1]
        assert [number async for number in answers] == list(range(1, 10))
