"""More requests than a server can compute."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from unittest import mock

import pytest
from pydantic import ValidationError

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.config import ServingConfig
from tests.engine.bundles import write_bundle
from tests.engine.held import hold
from tests.engine.pictures import picture
from tests.server.serving.harness import harness, small_config, until

pytestmark = pytest.mark.process


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


async def test_a_full_server_refuses_with_a_delay_and_then_recovers(root: Path) -> None:
    async with harness(root, small_config(queue_items=4, max_images_per_request=4)) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 100)
        inside = [asyncio.create_task(h.embed(picture(seed))) for seed in range(4)]
        await until(lambda: h.service.admission.items == 4)
        # Time of this thread: what else the machine does is no matter.
        start = time.thread_time()
        with pytest.raises(MultigrainError) as caught:
            await h.embed(picture(9))
        assert time.thread_time() - start < 0.05
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
        assert h.metric("multigrain_rejected_total", reason="queue_full") == 1
        hold(engine, 0)
        await asyncio.gather(*inside)
        assert h.service.admission.items == 0
        await h.embed(picture(9))


async def test_the_images_of_a_refused_request_are_not_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness(root, small_config(queue_items=4, max_images_per_request=4)) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 100)
        inside = asyncio.create_task(h.embed(*(picture(seed) for seed in range(4))))
        await until(lambda: h.service.admission.items == 4)
        examined = mock.Mock()
        monkeypatch.setattr("multigrain_server.serving.service._decode_costs", examined)
        with pytest.raises(MultigrainError, match="full"):
            await h.embed(picture(9))
        examined.assert_not_called()
        hold(engine, 0)
        await inside


async def test_a_request_is_admitted_whole_or_not_at_all(root: Path) -> None:
    async with harness(root, small_config(queue_items=4, max_images_per_request=4)) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 100)
        inside = asyncio.create_task(h.embed(picture(1), picture(2)))
        await until(lambda: h.service.admission.items == 2)
        with pytest.raises(MultigrainError, match="full"):
            await h.embed(picture(3), picture(4), picture(5))
        assert h.service.admission.items == 2
        hold(engine, 0)
        await inside


async def test_an_admitted_request_that_others_delay_is_refused_with_a_delay(
    root: Path,
) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 100)
        other = asyncio.create_task(h.embed(picture(1)))
        await until(lambda: engine.in_flight == 1)
        deadline = time.monotonic_ns() + 200_000_000
        with pytest.raises(MultigrainError) as caught:
            await h.embed(picture(2), deadline_ns=deadline)
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert caught.value.retry_after
        assert h.metric("multigrain_rejected_total", reason="late") == 1
        hold(engine, 0)
        await other


async def test_the_bytes_in_flight_are_bounded(root: Path) -> None:
    big = picture(1, size=(64, 64), kind="BMP")
    config = small_config(queue_bytes=len(big) * 2, max_image_bytes=len(big))
    async with harness(root, config) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 100)
        inside = asyncio.create_task(h.embed(big, big))
        await until(lambda: h.service.admission.items == 2)
        with pytest.raises(MultigrainError) as caught:
            await h.embed(picture(2))
        assert caught.value.kind is ErrorKind.OVERLOADED
        hold(engine, 0)
        await inside


@pytest.mark.parametrize(
    "fields",
    [
        {"queue_items": 10, "max_images_per_request": 11},
        {"queue_bytes": 2000, "max_image_bytes": 3000},
        {"queue_item": 3},
        {"max_batch": 0},
    ],
)
def test_limits_that_contradict_each_other_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ServingConfig(**fields)


def test_every_limit_documents_its_unit_and_default() -> None:
    for name, field in ServingConfig.model_fields.items():
        assert field.description, name
