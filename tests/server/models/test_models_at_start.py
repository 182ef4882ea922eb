"""``serving.models``: what the daemon loads when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain_server.service_names import EMBEDDING
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture
from tests.server.serving.harness import harness, small_config, until

pytestmark = pytest.mark.process


async def test_configured_models_are_loaded_and_the_first_is_the_default(root: Path) -> None:
    write_bundle(root / "models", "other")
    config = small_config(models=("other", "tiny@1"))
    loaded: list[bool] = []
    async with harness(root, config, on_loaded=lambda: loaded.append(True)) as h:
        await until(lambda: bool(loaded))
        assert (await h.embed(picture(1))).model == "other@1"
        assert (await h.embed(picture(1), model="tiny@1")).model == "tiny@1"
        # It served only after the last one was loaded.
        assert h.health_log.index((EMBEDDING, True)) > h.health_log.index(
            (f"{EMBEDDING}/tiny", True)
        )


async def test_one_that_cannot_be_loaded_does_not_stop_the_others(root: Path) -> None:
    (root / "models/tiny/2/model.onnx").write_bytes(b"")
    config = small_config(models=("absent", "tiny@2", "tiny@1"))
    loaded: list[bool] = []
    async with harness(root, config, on_loaded=lambda: loaded.append(True)) as h:
        await until(lambda: bool(loaded))
        assert (await h.embed(picture(1))).model == "tiny@1"
        assert h.health[EMBEDDING]


async def test_an_alias_of_the_last_run_can_be_named(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        h.manager.set_alias("production", "tiny@1")
    async with harness(root, small_config(models=("production",))) as h:
        await until(lambda: h.health.get(EMBEDDING, False))
        assert (await h.embed(picture(1))).model == "tiny@1"
