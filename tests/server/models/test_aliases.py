"""Aliases of models that are being loaded or unloaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from tests.engine.bundles import write_bundle
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import harness


async def test_an_alias_that_is_set_while_an_unload_waits_keeps_the_model(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    engines = FakeEngines()
    async with harness(tmp_path, launch=engines.launch) as h:
        await h.manager.load("tiny")
        engines.may_start.clear()
        switch = asyncio.create_task(h.manager.load("tiny", "mindspore"))
        await asyncio.sleep(0)
        unload = asyncio.create_task(h.manager.unload("tiny"))
        await asyncio.sleep(0)
        h.manager.set_alias("production", "tiny")
        engines.may_start.set()
        await switch
        with pytest.raises(MultigrainError, match="while alias production") as caught:
            await unload
        assert caught.value.kind is ErrorKind.WRONG_STATE
        assert (await h.embed(b"good", model="production")).model == "tiny@1"


async def test_a_version_that_is_still_loading_cannot_have_an_alias(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    engines = FakeEngines()
    engines.may_start.clear()
    async with harness(tmp_path, launch=engines.launch) as h:
        load = asyncio.create_task(h.manager.load("tiny"))
        await asyncio.sleep(0)
        with pytest.raises(MultigrainError, match="not loaded"):
            h.manager.set_alias("production", "tiny")
        engines.may_start.set()
        await load
        h.manager.set_alias("production", "tiny")


async def test_an_alias_of_a_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    async with harness(tmp_path, launch=FakeEngines().launch) as h:
        with pytest.raises(MultigrainError, match="no model nothing"):
            h.manager.set_alias("production", "nothing")


async def test_an_alias_that_is_set_just_after_a_newer_version_was_loaded_keeps_the_older_one(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path / "models", version=1)
    write_bundle(tmp_path / "models", version=2)
    async with harness(tmp_path, launch=FakeEngines().launch) as h:
        await h.manager.load("tiny@1")
        await h.manager.load("tiny@2")
        h.manager.set_alias("production", "tiny@1")
        await asyncio.sleep(0.1)
        assert (await h.embed(b"good", model="production")).model == "tiny@1"
