"""Who uses which device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from multigrain.errors import MultigrainError
from multigrain.spec.base import DeviceSpec
from multigrain_server.jobs.devices import Inventory

_NOUN = {"cpu": "CPU slot", "gpu": "GPU", "ascend": "Ascend device"}


@dataclass(frozen=True)
class Lease:
    """Units of one kind in use by one job (or engine)."""

    owner: str
    kind: str
    units: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        """Variables that show a process exactly the leased devices, numbered from 0."""
        visible = ",".join(str(unit) for unit in self.units)
        if self.kind == "gpu":
            return {"CUDA_VISIBLE_DEVICES": visible}
        if self.kind == "ascend":
            return {"ASCEND_RT_VISIBLE_DEVICES": visible}
        return {}


class Leases:
    """The leases of one inventory. A unit has at most one owner."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self._leases: dict[str, Lease] = {}

    def needed(self, devices: DeviceSpec) -> int:
        """Units a job takes: one CPU slot whatever its workers, one GPU or NPU each worker.

        A rank table spans hosts: its job takes what this host has, at most ``count``.
        """
        if devices.target == "cpu":
            return 1
        if devices.launcher == "rank-table":
            return min(devices.count, len(self.inventory.units(devices.target)))
        return devices.count

    def check(self, devices: DeviceSpec) -> None:
        """Refuses what could never run here.

        Raises:
            MultigrainError: INVALID_FIELD that names ``spec.devices.target`` or ``.count``.
        """
        available = len(self.inventory.units(devices.target))
        if available == 0:
            raise MultigrainError.field(
                "spec.devices.target",
                f'this server has no device of kind "{devices.target}"; it has {self.inventory}',
            )
        if self.needed(devices) > available:
            raise MultigrainError.field(
                "spec.devices.count",
                f"{devices.count} workers need as many {devices.target} devices, "
                f"and this server has {available}",
            )

    def possible(self, devices: DeviceSpec) -> bool:
        """Whether this inventory has enough units, free or not."""
        return 0 < self.needed(devices) <= len(self.inventory.units(devices.target))

    def acquire(self, owner: str, devices: DeviceSpec) -> Lease | None:
        """Takes free units, or None if there are too few. Asking again returns the same lease."""
        if owner in self._leases:
            return self._leases[owner]
        free = self.free(devices.target)
        needed = self.needed(devices)
        if not self.possible(devices) or len(free) < needed:
            return None
        lease = Lease(owner, devices.target, free[:needed])
        self._leases[owner] = lease
        return lease

    def restore(self, lease: Lease) -> None:
        """Takes over a lease of an earlier daemon, even one this inventory has no room for:
        the process that holds it is running."""
        self._leases[lease.owner] = lease

    def release(self, owner: str) -> None:
        """Gives the owner's units back, if it has any."""
        self._leases.pop(owner, None)

    def free(self, kind: str) -> tuple[int, ...]:
        used = {unit for lease in self.of_kind(kind) for unit in lease.units}
        return tuple(unit for unit in self.inventory.units(kind) if unit not in used)

    def of_kind(self, kind: str) -> Iterator[Lease]:
        return (lease for lease in self._leases.values() if lease.kind == kind)

    def explain(self, devices: DeviceSpec) -> str:
        """Why a job with these devices waits, in words."""
        kind, needed = devices.target, self.needed(devices)
        noun = _NOUN[kind]
        total = len(self.inventory.units(kind))
        if not self.possible(devices):
            return f"waiting for {needed} {noun}{'s' * (needed != 1)}: this server has {total}"
        owners = sorted({lease.owner for lease in self.of_kind(kind)})
        used = total - len(self.free(kind))
        wanted = f"a free {noun}" if needed == 1 else f"{needed} free {noun}s"
        by = ", ".join(o if o.startswith("engine ") else f"job {o}" for o in owners[:4])
        more = f" and {len(owners) - 4} more" if len(owners) > 4 else ""
        return f"waiting for {wanted}: {used} of {total} in use" + (f" by {by}{more}" if by else "")
