"""Engines within a memory budget, and models that are loaded when they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models import eviction
from tests.engine.bundles import write_bundle
from tests.server.models.fake_engine import FakeEngines
from tests.server.serving.house import House, house, small_config, until

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
async def two_fit(root: Path, engines: FakeEngines) -> AsyncIterator[House]:
    async with house(root, small_config(memory_budget_mib=250), engines.launch) as h:
        yield h


@pytest.fixture
async def on_demand(root: Path, engines: FakeEngines) -> AsyncIterator[House]:
    config = small_config(memory_budget_mib=250, load_on_demand=True)
    async with house(root, config, engines.launch) as h:
        yield h


def loaded(h: House) -> list[str]:
    models = h.manager.catalogue.page(loaded_only=True).models
    return [view.entry.version.name for view in models]


async def test_the_least_recently_used_model_makes_way(two_fit: House) -> None:
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


async def test_what_was_used_last_stays(root: Path, engines: FakeEngines) -> None:
    write_bundle(root / "models", "d")
    async with house(root, small_config(memory_budget_mib=350), engines.launch) as h:
        for name in "abc":
            await h.manager.load(name)
        await h.manager.load("a", make_default=True)
        await h.embed(b"x", model="b")
        await h.manager.load("d")
        assert loaded(h) == ["a", "b", "d"]


async def test_a_load_that_cannot_fit_is_refused_and_changes_nothing(
    two_fit: House, engines: FakeEngines
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


async def test_a_version_that_is_replaced_does_not_count(two_fit: House, root: Path) -> None:
    h = two_fit
    write_bundle(root / "models", "a", version=2)
    await h.manager.load("b")
    h.manager.set_alias("production", "b")
    await h.manager.load("a@1")
    await h.manager.load("a@2")
    await until(lambda: loaded(h) == ["a", "b"])
    assert h.manager.route("a").entry.version.version == 2


async def test_without_a_budget_nothing_makes_way(root: Path, engines: FakeEngines) -> None:
    engines.memory = 1 << 50
    async with house(root, launch=engines.launch) as h:
        for name in "abc":
            await h.manager.load(name)
        assert loaded(h) == ["a", "b", "c"]


async def test_a_model_that_a_request_names_is_loaded_on_demand(on_demand: House) -> None:
    h = on_demand
    with pytest.raises(MultigrainError, match="a@1 is being loaded") as caught:
        await h.embed(b"x", model="a")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.retry_after
    await until(lambda: h.health.get("multigrain.v1.EmbeddingService/a", False))
    assert (await h.embed(b"x", model="a")).model == "a@1"


async def test_on_demand_even_what_has_an_alias_makes_way_and_comes_back(on_demand: House) -> None:
    h = on_demand
    await h.manager.load("a", make_default=True)
    h.manager.set_alias("production", "a")
    await h.manager.load("b")
    await h.manager.load("c")
    assert loaded(h) == ["b", "c"]
    assert h.manager.catalogue.page().aliases == {"production": "a@1"}
    for name in ("production", ""):
        with pytest.raises(MultigrainError, match="being loaded"):
            await h.embed(b"x", model=name)
    await until(lambda: h.manager.view("a").state.value == "ready")
    assert (await h.embed(b"x", model="production")).model == "a@1"
    assert (await h.embed(b"x")).model == "a@1"
    assert loaded(h) == ["a", "c"]


async def test_callers_that_ask_together_start_one_engine(
    on_demand: House, engines: FakeEngines
) -> None:
    calls = [on_demand.embed(b"x", model="a") for _ in range(5)]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, MultigrainError)
    await until(lambda: on_demand.manager.view("a").state.value == "ready")
    assert len(engines.children) == 1


async def test_a_failed_load_on_demand_is_told_and_not_tried_at_every_request(
    on_demand: House, engines: FakeEngines, root: Path
) -> None:
    (root / "models/a/1/model.onnx").write_bytes(b"")
    messages: list[str] = []

    def told() -> bool:
        with pytest.raises(MultigrainError) as caught:
            on_demand.manager.route("a")
        messages.append(caught.value.message)
        return "not what was written" in messages[-1]

    assert not told()
    await until(told)
    assert all("loading" in m or "being loaded" in m for m in messages[:-1])
    assert told()
    assert engines.children == []


async def test_an_alias_may_point_at_what_is_loaded_on_demand(on_demand: House) -> None:
    assert on_demand.manager.set_alias("production", "a") == "a@1"
    with pytest.raises(MultigrainError, match="no model nothing"):
        on_demand.manager.set_alias("production", "nothing")


async def test_the_budget_is_watched_on_after_a_disk_was_full(
    two_fit: House, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "_ROUND_SECONDS", 0.01)
    h = two_fit
    await h.manager.load("a")
    await h.manager.load("b", make_default=True)
    full = MultigrainError(ErrorKind.STORAGE, "what is loaded cannot be noted")
    tried: list[None] = []

    def cannot(_version: object) -> None:
        tried.append(None)
        raise full

    store = h.manager._store
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_loaded", cannot)
        engines.memory = 200 * MIB
        h.manager._spawn(h.manager._residents.budget.watch())
        await until(lambda: len(tried) > 1, 10)
        assert loaded(h) == ["a", "b"]
    await until(lambda: loaded(h) == ["b"], 10)
