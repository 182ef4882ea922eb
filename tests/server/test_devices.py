"""Inventory of devices and their leases."""

from __future__ import annotations

import pytest

from multigrain.errors import MultigrainError
from multigrain.specs.base import DeviceSpec
from multigrain_server.devices import Inventory, Leases


@pytest.mark.parametrize(
    ("text", "cpu", "gpu", "ascend"),
    [
        ("cpu:1", (0,), (), ()),
        ("cpu:2, gpu:0-3,gpu:6", (0, 1), (0, 1, 2, 3, 6), ()),
        ("ascend:7", (), (), (7,)),
        ("", (), (), ()),
        ("gpu:1,gpu:1", (), (1,), ()),
    ],
)
def test_device_lists_are_parsed(
    text: str, cpu: tuple[int, ...], gpu: tuple[int, ...], ascend: tuple[int, ...]
) -> None:
    inventory = Inventory.parse(text)
    assert (inventory.cpu, inventory.gpu, inventory.ascend) == (cpu, gpu, ascend)
    assert Inventory.parse(str(inventory)) == inventory


@pytest.mark.parametrize("text", ["gpu", "cpu:0-3", "gpu:3-1", "tpu:1", "gpu:-1", "gpu:a"])
def test_invalid_device_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"gpu|cpu|tpu"):
        Inventory.parse(text)


def test_a_cpu_job_takes_one_slot_with_any_number_of_workers() -> None:
    leases = Leases(Inventory.parse("cpu:2"))
    devices = DeviceSpec(count=8)
    leases.check(devices)
    assert leases.acquire("a", devices) is not None
    assert leases.free("cpu") == (1,)
    assert leases.acquire("b", devices) is not None
    assert leases.acquire("c", devices) is None
    assert leases.explain(devices) == "waiting for a free CPU slot: 2 of 2 in use by job a, job b"
    leases.release("a")
    assert leases.free("cpu") == (0,)


def test_a_gpu_job_takes_one_device_per_worker_and_sees_only_them() -> None:
    leases = Leases(Inventory.parse("gpu:0-3"))
    first = leases.acquire("a", DeviceSpec(target="gpu", count=1))
    second = leases.acquire("b", DeviceSpec(target="gpu", count=2))
    assert first is not None
    assert second is not None
    assert second.environment() == {"CUDA_VISIBLE_DEVICES": "1,2"}
    more = DeviceSpec(target="gpu", count=2)
    assert leases.acquire("c", more) is None
    assert leases.explain(more) == "waiting for 2 free GPUs: 3 of 4 in use by job a, job b"
    assert leases.acquire("a", more) is first


def test_ascend_devices_have_their_own_environment_variable() -> None:
    leases = Leases(Inventory.parse("ascend:4-5"))
    lease = leases.acquire("a", DeviceSpec(target="ascend", count=2))
    assert lease is not None
    assert lease.environment() == {"ASCEND_RT_VISIBLE_DEVICES": "4,5"}


@pytest.mark.parametrize(
    ("devices", "field"),
    [
        (DeviceSpec(target="gpu", count=1), "spec.devices.target"),
        (DeviceSpec(target="ascend", count=3), "spec.devices.count"),
    ],
)
def test_devices_that_the_server_does_not_have_are_refused(devices: DeviceSpec, field: str) -> None:
    with pytest.raises(MultigrainError) as caught:
        Leases(Inventory.parse("cpu:1,ascend:0-1")).check(devices)
    assert caught.value.violations[0].field == field


def test_a_rank_table_job_takes_the_devices_of_this_host() -> None:
    leases = Leases(Inventory.parse("ascend:0-7"))
    devices = DeviceSpec(target="ascend", count=16, launcher="rank-table", rank_table="/t.json")
    leases.check(devices)
    lease = leases.acquire("a", devices)
    assert lease is not None
    assert len(lease.units) == 8


def test_a_restored_lease_is_kept_with_a_shorter_device_list() -> None:
    before = Leases(Inventory.parse("gpu:0-1"))
    lease = before.acquire("a", DeviceSpec(target="gpu", count=2))
    assert lease is not None
    now = Leases(Inventory.parse("gpu:1-2"))
    now.restore(lease)
    assert now.free("gpu") == (2,)
