"""Devices of this machine: the inventory, their leases, and the devices of engines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.base import DeviceSpec

KINDS = ("cpu", "gpu", "ascend")
_NOUN = {"cpu": "CPU slot", "gpu": "GPU", "ascend": "Ascend device"}

_PART = re.compile(r"^(cpu|gpu|ascend):(\d{1,4})(?:-(\d{1,4}))?$")
_OWNER = "engine {}"  # of a lease that is not a job's
_RETRY_SECONDS = 10.0


@dataclass(frozen=True)
class Inventory:
    """Leasable units of each kind: CPU slots, and indices of GPUs and Ascend NPUs.

    A CPU slot lets one job use all cores, with any number of workers.
    """

    cpu: tuple[int, ...] = (0,)
    gpu: tuple[int, ...] = ()
    ascend: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Inventory:
        """Parses ``"cpu:2,gpu:0-3,gpu:6"``: number of CPU slots, indices or ranges of the others.

        Raises:
            ValueError: with what is wrong and the right format.
        """
        units: dict[str, set[int]] = {kind: set() for kind in KINDS}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            match = _PART.match(part)
            if match is None:
                raise ValueError(
                    f"{part!r} is not a device list; write cpu:N (jobs that share the CPU), "
                    "gpu:0-7 or ascend:0 (indices), joined by commas"
                )
            kind, first, last = match[1], int(match[2]), match[3]
            if kind == "cpu":
                if last is not None:
                    raise ValueError(f"{part!r}: cpu takes a number of slots, such as cpu:2")
                units["cpu"] |= set(range(first))
            else:
                stop = int(last) if last is not None else first
                if stop < first:
                    raise ValueError(f"{part!r} is an empty range")
                units[kind] |= set(range(first, stop + 1))
        return cls(*(tuple(sorted(units[kind])) for kind in KINDS))

    def units(self, kind: str) -> tuple[int, ...]:
        """The units of a kind of KINDS."""
        return {"cpu": self.cpu, "gpu": self.gpu, "ascend": self.ascend}[kind]

    def __str__(self) -> str:
        parts = [f"cpu:{len(self.cpu)}"]
        parts += [f"{kind}:{i}" for kind in ("gpu", "ascend") for i in self.units(kind)]
        return ",".join(parts)


@dataclass(frozen=True)
class Lease:
    """Units of one kind held by one job or engine."""

    owner: str
    kind: str
    units: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        """Environment variables that make only the leased devices visible, numbered from 0."""
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
        """Units that a job takes: one CPU slot, or one GPU or NPU per worker.

        A rank table covers several hosts: its job takes the units of this host, at most ``count``.
        """
        if devices.target == "cpu":
            return 1
        if devices.launcher == "rank-table":
            return min(devices.count, len(self.inventory.units(devices.target)))
        return devices.count

    def check(self, devices: DeviceSpec) -> None:
        """Refuses devices that this server does not have.

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
        """Whether the inventory has enough units, free or not."""
        return 0 < self.needed(devices) <= len(self.inventory.units(devices.target))

    def acquire(self, owner: str, devices: DeviceSpec) -> Lease | None:
        """Leases free units; None if there are too few. An owner keeps the lease it has."""
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
        """Restores a lease of an earlier daemon, even of units that are no longer in the
        inventory: the process that uses them is running."""
        self._leases[lease.owner] = lease

    def release(self, owner: str) -> None:
        """Releases the owner's units, if it has any."""
        self._leases.pop(owner, None)

    def free(self, kind: str) -> tuple[int, ...]:
        used = {unit for lease in self.of_kind(kind) for unit in lease.units}
        return tuple(unit for unit in self.inventory.units(kind) if unit not in used)

    def of_kind(self, kind: str) -> Iterator[Lease]:
        return (lease for lease in self._leases.values() if lease.kind == kind)

    def explain(self, devices: DeviceSpec) -> str:
        """Message that says why a job with these devices waits."""
        kind, needed = devices.target, self.needed(devices)
        noun = _NOUN[kind]
        total = len(self.inventory.units(kind))
        if not self.possible(devices):
            return (
                f"waiting for {needed} {noun}{'s' if needed != 1 else ''}: this server has {total}"
            )
        owners = sorted({lease.owner for lease in self.of_kind(kind)})
        used = total - len(self.free(kind))
        wanted = f"a free {noun}" if needed == 1 else f"{needed} free {noun}s"
        by = ", ".join(o if o.startswith("engine ") else f"job {o}" for o in owners[:4])
        more = f" and {len(owners) - 4} more" if len(owners) > 4 else ""
        return f"waiting for {wanted}: {used} of {total} in use" + (f" by {by}{more}" if by else "")


class EngineDevices:
    """Leases a GPU or NPU to each loaded model, so that no job is given the same.

    A model keeps its lease while its engine restarts or is switched. If no device is free, models
    share one: that is slow, but better than refusing to load a model. CPU engines lease nothing:
    CPU slots are for jobs.

    Args:
        kind: "cpu", "gpu" or "ascend".
        leases: shared with the jobs; None: devices are not leased.
    """

    def __init__(self, kind: str, leases: Leases | None) -> None:
        self._kind = kind
        self._leases = leases if kind != "cpu" else None
        self._sharing: dict[Lease, set[str]] = {}

    def acquire(self, label: str) -> Mapping[str, str]:
        """Leases a device for a model; a model that has one keeps it.

        Args:
            label: "name@version" of the model.

        Returns:
            Environment variables for the model's engine.

        Raises:
            MultigrainError: OVERLOADED if jobs use all devices; UNSUPPORTED if there is none.
        """
        if self._leases is None:
            return {}
        for held, labels in self._sharing.items():
            if label in labels:
                return held.environment()
        wanted = DeviceSpec.model_validate({"target": self._kind, "count": 1})
        if not self._leases.possible(wanted):
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"serving.device is {self._kind}, and this server has no such device; it has "
                f"{self._leases.inventory}",
            )
        lease = self._leases.acquire(_OWNER.format(label), wanted)
        if lease is None:
            if not self._sharing:
                raise MultigrainError(
                    ErrorKind.OVERLOADED,
                    f"{label} is {self._leases.explain(wanted)}",
                    retry_after=_RETRY_SECONDS,
                )
            lease = min(self._sharing, key=lambda held: len(self._sharing[held]))
        self._sharing.setdefault(lease, set()).add(label)
        return lease.environment()

    def release(self, label: str) -> None:
        """Releases the device of a model that was unloaded, if it has one."""
        if self._leases is None:
            return
        for lease, labels in list(self._sharing.items()):
            labels.discard(label)
            if not labels:
                del self._sharing[lease]
                self._leases.release(lease.owner)
