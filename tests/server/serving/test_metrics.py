"""Failed requests and images are counted once each, by reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from multigrain.engine.protocol import Result
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.metrics import DROPPED_IN
from tests.engine.bundles import write_bundle
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import Harness, harness, small_config


@pytest.fixture
async def h(tmp_path: Path) -> AsyncIterator[Harness]:
    write_bundle(tmp_path / "models")
    config = small_config(max_images_per_request=2, max_image_bytes=1024)
    async with harness(tmp_path, config, FakeEngines().launch) as h:
        await h.manager.load("tiny")
        yield h


async def test_a_request_of_too_many_images(h: Harness) -> None:
    with pytest.raises(MultigrainError, match="at most 2 in a request"):
        await h.embed(b"a", b"b", b"c")
    assert h.metric("multigrain_rejected_total", reason="too_many_items") == 1


async def test_a_request_whose_deadline_has_passed(h: Harness) -> None:
    with pytest.raises(MultigrainError) as caught:
        await h.embed(b"a", deadline_ns=1)
    assert caught.value.kind is ErrorKind.DEADLINE
    assert h.metric("multigrain_rejected_total", reason="deadline") == 1
    statistics = h.manager.catalog.route("").statistics
    assert (statistics.fail.count, statistics.success.count) == (1, 0)


async def test_an_image_that_is_too_large(h: Harness) -> None:
    answer = await h.embed(b"a", b"x" * 1025)
    assert [item.error.kind if item.error else None for item in answer.results] == [
        None,
        ErrorKind.IMAGE_TOO_LARGE,
    ]
    assert h.metric("multigrain_items_failed_total", reason="too_large") == 1
    assert h.metric("multigrain_queue_items", model="tiny") == 0
    assert h.metric("multigrain_model_load_seconds_count") == 1


@pytest.mark.parametrize("where", ["queue", "batch"])
async def test_an_image_whose_caller_was_canceled(h: Harness, where: str) -> None:
    result = Result(id=1, error=ErrorKind.CANCELLED, where=where)
    h.manager.catalog.route("")._observe(result)
    counts = {
        place: h.metric("multigrain_cancelled_items_total", where=place) for place in DROPPED_IN
    }
    assert counts == {**dict.fromkeys(DROPPED_IN, 0), where: 1}
