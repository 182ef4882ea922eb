"""How the process of an engine is started."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from multigrain.engine.settings import EngineSettings
from multigrain_server.engines.launch import EngineOrder, launch
from multigrain_server.serving.config import ServingConfig

ORDER = EngineOrder("tiny@1", Path("/models/tiny/1"), "auto")


async def _told(
    monkeypatch: pytest.MonkeyPatch, order: EngineOrder, **fields: object
) -> EngineSettings:
    """What the process would be told, apart from the numbers of its descriptors."""
    started: list[tuple[str, ...]] = []

    async def no_process(*command: str, **_: Any) -> None:
        started.append(command)
        raise OSError("short of processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
    with pytest.raises(OSError, match="short of processes"):
        await launch(order, ServingConfig(**fields))
    _, _, module, *arguments = started[0]
    assert module == "multigrain.engine"
    settings = EngineSettings.parse(arguments)
    return settings.model_copy(update={"socket_fd": 0, "inflight_fd": 0})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("max_image_bytes", 1 << 20, "max_image_bytes"),
        ("max_image_pixels", 1_000_000, "max_image_pixels"),
        ("max_batch", 7, "max_batch"),
        ("decode_threads", 77, "decode_threads"),
        ("engine_threads", 78, "threads"),
        ("device", "gpu", "device"),
    ],
)
async def test_every_limit_that_is_set_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch, field: str, value: object, told: str
) -> None:
    usual = await _told(monkeypatch, ORDER)
    assert getattr(usual, told) != value
    assert await _told(monkeypatch, ORDER, **{field: value}) == usual.model_copy(
        update={told: value}
    )


async def test_an_engine_that_serves_nobody_yet_is_told_to_give_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = replace(ORDER, background=True)
    assert (await _told(monkeypatch, later)).low_priority
    assert not (await _told(monkeypatch, ORDER)).low_priority


async def test_an_engine_that_cannot_be_started_leaves_no_descriptor_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await _told(monkeypatch, ORDER)
    before = psutil.Process().num_fds()
    for _ in range(10):
        await _told(monkeypatch, ORDER)
    assert psutil.Process().num_fds() == before
