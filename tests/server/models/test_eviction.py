"""Engines within a memory budget."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models import eviction
from tests.engine.bundles import write_bundle
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import Harness, harness, small_config, until

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abc":
        write_bundle(tmp_path / "models", name)
    return tmp_path


@pytest.fixture
def engines() -> FakeEngines:
    return FakeEngines(memory=100 * MIB)


@pytest.fixture
async def two_fit(root: Path, engines: FakeEngines) -> AsyncIterator[Harness]:
    async with harness(root, small_config(memory_budget_mib=250), engines.launch) as h:
        yield h


def loaded(h: Harness) -> list[str]:
    models = h.manager.catalog.page(loaded_only=True).models
    return [view.entry.version.name for view in models]


async def test_the_least_recently_used_model_is_evicted(two_fit: Harness) -> None:
    h = two_fit
    await h.manager.load("c", make_default=True)
    await h.manager.load("a")
    h.manager.set_alias("kept", "c")
    h.manager.set_alias("kept", "")
    await h.manager.load("b")
    # "c" is older, but the default.
    assert loaded(h) == ["b", "c"]
    assert h.metric("multigrain_engine_memory_bytes", model="b", version="1") == 100 * MIB
    assert h.metric("multigrain_engine_memory_bytes", model="a", version="1") == 0


async def test_recently_used_models_stay_loaded(root: Path, engines: FakeEngines) -> None:
    write_bundle(root / "models", "d")
    async with harness(root, small_config(memory_budget_mib=350), engines.launch) as h:
        for name in "abc":
            await h.manager.load(name)
        await h.manager.load("a", make_default=True)
        await h.embed(b"x", model="b")
        await h.manager.load("d")
        assert loaded(h) == ["a", "b", "d"]


async def test_a_load_that_cannot_fit_is_refused_and_changes_nothing(
    two_fit: Harness, engines: FakeEngines
) -> None:
    h = two_fit
    await h.manager.load("a", make_default=True)
    await h.manager.load("b")
    h.manager.set_alias("production", "b")
    with pytest.raises(MultigrainError, match=r"c@1 .* 300 MiB, .* is 250") as caught:
        await h.manager.load("c")
    assert caught.value.kind is ErrorKind.WRONG_STATE
    assert loaded(h) == ["a", "b"]
    assert len(engines.running) == 2
    # Now its size is known: refused before an engine is started.
    count = len(engines.children)
    with pytest.raises(MultigrainError, match="300 MiB"):
        await h.manager.load("c")
    assert len(engines.children) == count


async def test_a_replaced_version_does_not_count(two_fit: Harness, root: Path) -> None:
    h = two_fit
    write_bundle(root / "models", "a", version=2)
    await h.manager.load("b")
    h.manager.set_alias("production", "b")
    await h.manager.load("a@1")
    await h.manager.load("a@2")
    await until(lambda: loaded(h) == ["a", "b"])
    assert h.manager.catalog.route("a").entry.version.version == 2


async def test_without_a_budget_no_model_is_evicted(root: Path, engines: FakeEngines) -> None:
    engines.memory = 1 << 50
    async with harness(root, launch=engines.launch) as h:
        for name in "abc":
            await h.manager.load(name)
        assert loaded(h) == ["a", "b", "c"]


async def test_the_budget_is_enforced_again_after_a_full_disk(
    two_fit: Harness, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "_INTERVAL_SECONDS", 0.01)
    h = two_fit
    await h.manager.load("a")
    await h.manager.load("b", make_default=True)
    full = MultigrainError(ErrorKind.STORAGE, "serving.json cannot be written")
    tried: list[None] = []

    def cannot(_version: object) -> None:
        tried.append(None)
        raise full

    store = h.manager._state
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_loaded", cannot)
        engines.memory = 200 * MIB
        h.manager._spawn(h.manager._budget.watch())
        await until(lambda: len(tried) > 1, 10)
        assert loaded(h) == ["a", "b"]
    await until(lambda: loaded(h) == ["b"], 10)
