"""Unloaded and deleted models disappear from the default and the metrics."""

from __future__ import annotations

from pathlib import Path

from tests.engine.bundles import write_bundle
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import harness


async def test_an_unloaded_model_is_no_longer_the_default(tmp_path: Path) -> None:
    for name in "ab":
        write_bundle(tmp_path / "models", name)
    async with harness(tmp_path, launch=FakeEngines().launch) as h:
        default = lambda: h.manager.catalog.page().default_model  # noqa: E731
        await h.manager.load("a@1", make_default=True)
        await h.manager.load("b")
        assert default() == "a@1"
        await h.manager.unload("a@1")
        assert default() == "b@1"
        await h.manager.load("a@1")
        assert default() == "b@1"


async def test_a_deleted_version_has_no_metrics(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models", "a")
    async with harness(tmp_path, launch=FakeEngines().launch) as h:
        labels = {"model": "a", "version": "1", "state": "unloaded"}
        assert h.registry.get_sample_value("multigrain_model_state", labels) == 1
        await h.manager.delete("a@1")
        assert h.registry.get_sample_value("multigrain_model_state", labels) is None
