"""What the daemon does about images whose decoding an engine has ended."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind
from multigrain.images.cost import decode_cost
from multigrain_server.engines.images import client_number
from tests.engine.bundles import SIZE, write_bundle
from tests.engine.pictures import picture
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import harness, until

HARMFUL = b"harmful"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


@pytest.mark.parametrize("harm", ["budget", "crash"])
async def test_a_harmful_image_is_quarantined_and_its_client_penalized(
    root: Path, harm: str
) -> None:
    engines = FakeEngines(harm={HARMFUL: harm})
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        answer = await h.embed(b"good", HARMFUL, b"fine", client="attacker")
        assert [item.error is None for item in answer.results] == [True, False, True]
        for _ in range(2):
            error = answer.results[1].error
            assert error is not None
            assert error.kind is ErrorKind.IMAGE_HARMFUL
            assert hashlib.sha256(HARMFUL).hexdigest() in error.message
            assert "because" in error.message
            answer = await h.embed(b"good", HARMFUL, client="neighbor")
        assert engines.taken[HARMFUL] == 1
        assert h.service.penalties.active("attacker")
        assert not h.service.penalties.active("neighbor")
        assert len(engines.children) == 1
        assert h.metric("multigrain_items_failed_total", reason="harmful") == 3


async def test_an_image_without_enough_memory_penalizes_nobody(root: Path) -> None:
    engines = FakeEngines(harm={HARMFUL: "memory"})
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        for _ in range(2):
            error = (await h.embed(HARMFUL, client="one")).results[0].error
            assert error is not None
            assert error.kind is ErrorKind.OVERLOADED
            assert "for 5 minutes" in error.message
        assert engines.taken[HARMFUL] == 1
        assert not h.service.penalties.active("one")


async def test_an_image_that_took_too_long_and_was_answered_penalizes_its_client(
    root: Path,
) -> None:
    engines = FakeEngines(harm={HARMFUL: "late"})
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        for _ in range(2):
            answer = await h.embed(HARMFUL, client="one")
            assert answer.results[0].error is None
        assert engines.taken[HARMFUL] == 2
        assert h.service.penalties.active("one")
        assert [request.penalized for request in engines.requests] == [False, True]


async def test_a_caller_that_leaves_its_expensive_image_is_penalized(root: Path) -> None:
    engines = FakeEngines(harm={HARMFUL: "abandoned"})
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        engines.may_compute.clear()
        request = asyncio.create_task(h.embed(HARMFUL, client="one"))
        await until(lambda: len(engines.requests) == 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert not h.service.penalties.active("one")
        engines.may_compute.set()
        await until(lambda: h.service.penalties.active("one"))
        # Not quarantined: nobody knows how long it would have taken.
        engines.harm.clear()
        assert (await h.embed(HARMFUL, client="two")).results[0].error is None


async def test_engines_are_told_the_client_and_the_cost_of_each_image(root: Path) -> None:
    images = [picture(1), picture(2, size=(640, 480), kind="JPEG")]
    engines = FakeEngines()
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        await h.embed(*images, client="one")
        await h.embed(images[0], client="two")
    costs = [decode_cost(image, 3 * SIZE) for image in images]
    first, second, third = engines.requests
    assert [first.decode_seconds, second.decode_seconds] == [cost.seconds for cost in costs]
    assert [first.decode_bytes, second.decode_bytes] == [cost.bytes for cost in costs]
    assert first.client == second.client == client_number("one")
    assert third.client == client_number("two") != first.client
    assert client_number("") == 0
