"""Results of images that are sent again."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from multigrain.engine.protocol import EmbeddingOptions, Result
from multigrain_server.engines.images import ImageResult
from multigrain_server.models.metrics import ServingMetrics
from multigrain_server.serving.cache import ResponseCache
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture
from tests.server.serving.harness import Harness, harness, small_config

pytestmark = pytest.mark.process


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models", also=16)
    return tmp_path


def computed(h: Harness) -> float:
    return h.metric("multigrain_batch_items_sum", model="tiny")


async def test_an_image_that_is_sent_again_is_not_computed_again(root: Path) -> None:
    async with harness(root, small_config(cache_bytes=1_000_000)) as h:
        await h.manager.load("tiny")
        first = await h.embed(picture(1), picture(2))
        again = await h.embed(picture(2), picture(3), picture(1))
        assert computed(h) == 3
        assert again.results[0] == first.results[1]
        assert again.results[2] == first.results[0]
        assert h.metric("multigrain_cache_lookups_total", result="hit") == 2
        assert h.metric("multigrain_cache_lookups_total", result="miss") == 3
        assert h.metric("multigrain_cache_bytes") > 3 * 64


async def test_other_options_are_other_entries(root: Path) -> None:
    async with harness(root, small_config(cache_bytes=1_000_000)) as h:
        await h.manager.load("tiny")
        await h.embed(picture(1))
        await h.embed(picture(1), resolution=16)
        await h.embed(picture(1), vector=EmbeddingOptions())
        await h.embed(picture(1), vector=None, top_k=2)
        await h.embed(picture(1), vector=None, top_k=3)
        assert computed(h) == 5
        # Another engine, another runtime perhaps: nothing that the first one said counts.
        await h.manager.load("tiny", "onnxruntime")
        await h.embed(picture(1))
        assert h.metric("multigrain_cache_lookups_total", result="hit") == 0


async def test_cached_results_need_no_admission(root: Path) -> None:
    async with harness(root, small_config(cache_bytes=1_000_000, queue_items=64)) as h:
        await h.manager.load("tiny")
        await h.embed(picture(1))
        h.service.admission.drain()
        assert (await h.embed(picture(1))).results[0].error is None


async def test_errors_are_not_cached_and_by_default_nothing_is(root: Path) -> None:
    async with harness(root, small_config(cache_bytes=1_000_000)) as h:
        await h.manager.load("tiny")
        for _ in range(2):
            assert (await h.embed(b"no picture")).results[0].error is not None
        assert h.metric("multigrain_cache_lookups_total", result="hit") == 0
    async with harness(root) as h:
        await h.manager.load("tiny")
        await h.embed(picture(1))
        await h.embed(picture(1))
        assert computed(h) == 2
        assert h.metric("multigrain_cache_lookups_total", result="miss") == 0


class Engine:
    """A fake engine."""


def test_the_least_recently_used_results_are_evicted() -> None:
    cache = ResponseCache(5000, ServingMetrics(CollectorRegistry()))
    engine = Engine()

    def key(number: int) -> object:
        return cache.key(b"%d" % number, engine, None)  # type: ignore[arg-type]

    for number in range(3):
        cache.put(key(number), ImageResult(Result(id=number), b"x" * 1000))  # type: ignore[arg-type]
    assert cache.get(key(0)) is not None  # type: ignore[arg-type]
    cache.put(key(3), ImageResult(Result(id=3), b"x" * 1000))  # type: ignore[arg-type]
    kept = [number for number in range(4) if cache.get(key(number)) is not None]  # type: ignore[arg-type]
    assert kept == [0, 2, 3]
    cache.put(key(4), ImageResult(Result(id=4), b"x" * 9000))  # type: ignore[arg-type]
    assert cache.get(key(4)) is None  # type: ignore[arg-type]
