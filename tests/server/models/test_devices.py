"""Engines and jobs on the same GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.base import DeviceSpec
from multigrain_server.devices import Inventory, Leases
from tests.engine.bundles import write_bundle
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import harness, small_config, until

GPU = DeviceSpec.model_validate({"target": "gpu", "count": 1})
CUDA = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abc":
        write_bundle(tmp_path / "models", name)
    return tmp_path


@pytest.fixture
def leases() -> Leases:
    return Leases(Inventory.parse("gpu:4-5"))


async def test_each_engine_gets_a_device_that_no_job_has(root: Path, leases: Leases) -> None:
    engines = FakeEngines()
    async with harness(root, small_config(device="gpu"), engines.launch, leases) as h:
        leases.acquire("job", GPU)
        await h.manager.load("a")
        assert engines.specs[0].environment == {CUDA: "5"}
        assert leases.acquire("another job", GPU) is None
        assert "engine a@1" in leases.explain(GPU)
        await h.manager.unload("a")
        assert leases.free("gpu") == (5,)


async def test_engines_share_when_there_are_more_of_them_than_devices(
    root: Path, leases: Leases
) -> None:
    engines = FakeEngines()
    async with harness(root, small_config(device="gpu"), engines.launch, leases) as h:
        for name in "abc":
            await h.manager.load(name)
        seen = [order.environment[CUDA] for order in engines.specs]
        assert sorted(seen[:2]) == ["4", "5"]
        assert seen[2] in seen[:2]
        await h.manager.unload("abc"[seen.index(seen[2])])
        # The other one is still on it.
        assert leases.free("gpu") == ()
        await h.manager.unload("c")
        assert leases.free("gpu") == (int(seen[2]),)


async def test_the_next_engine_of_a_model_has_the_same_device(root: Path, leases: Leases) -> None:
    engines = FakeEngines()
    async with harness(root, small_config(device="gpu"), engines.launch, leases) as h:
        await h.manager.load("a")
        engines.children[0].die("signal SIGSEGV")
        await until(lambda: len(engines.children) == 2)
        assert engines.specs[1].environment == engines.specs[0].environment
        assert len(leases.free("gpu")) == 1


async def test_a_load_without_a_free_device_fails_and_leaves_nothing_behind(
    root: Path, leases: Leases
) -> None:
    engines = FakeEngines()
    async with harness(root, small_config(device="gpu"), engines.launch, leases) as h:
        leases.acquire("one", GPU)
        leases.acquire("two", GPU)
        with pytest.raises(MultigrainError, match=r"a@1 .* free GPU: 2 of 2 .* job one") as caught:
            await h.manager.load("a")
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert caught.value.retry_after
        leases.release("one")
        engines.failures = [OSError(12, "Cannot allocate memory")]
        with pytest.raises(MultigrainError, match="cannot be started"):
            await h.manager.load("a")
        assert leases.free("gpu") == (4,)
    async with harness(root, small_config(device="ascend"), engines.launch, leases) as h:
        with pytest.raises(MultigrainError, match="no such device"):
            await h.manager.load("a")


async def test_engines_on_the_cpu_lease_no_slot(root: Path) -> None:
    leases = Leases(Inventory.parse("cpu:1"))
    async with harness(root, launch=FakeEngines().launch, leases=leases) as h:
        await h.manager.load("a")
        assert leases.free("cpu") == (0,)


async def test_a_model_that_a_restarted_daemon_cannot_load_holds_no_device(
    root: Path, leases: Leases
) -> None:
    engines = FakeEngines()
    config = small_config(device="gpu")
    async with harness(root, config, engines.launch, leases) as h:
        await h.manager.load("a")
    engines.failures = [OSError(12, "Cannot allocate memory")]
    async with harness(root, config, engines.launch, leases) as h:
        await until(lambda: h.manager.catalog.view("a").state.value == "failed")
        assert leases.free("gpu") == (4, 5)
