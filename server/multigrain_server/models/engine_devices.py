"""Which device an engine computes on."""

from __future__ import annotations

from collections.abc import Mapping

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.spec.base import DeviceSpec
from multigrain_server.jobs.leases import Lease, Leases

_RETRY_SECONDS = 10.0
_OWNER = "engine {}"


class EngineDevices:
    """Leases a GPU or NPU to each loaded model, so that no job is given the same.

    A model keeps its lease while its engine is replaced or switched. Where all devices that
    jobs leave are taken, models share: two engines on a device are slow, a refused load is
    worse. CPU engines lease nothing: the CPU's slots are the jobs'.

    Args:
        kind: "cpu", "gpu" or "ascend".
        leases: shared with the jobs; None = devices are not counted.
    """

    def __init__(self, kind: str, leases: Leases | None) -> None:
        self._kind = kind
        self._leases = leases if kind != "cpu" else None
        self._sharing: dict[Lease, set[str]] = {}

    def take(self, label: str) -> Mapping[str, str]:
        """A device for the model of that label ("name@version"), as environment of its engine;
        the same one when it is asked again.

        Raises:
            MultigrainError: OVERLOADED if jobs use all of them; UNSUPPORTED if there is none.
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

    def give_back(self, label: str) -> None:
        """When the model has ended; harmless if it has no device."""
        if self._leases is None:
            return
        for lease, labels in list(self._sharing.items()):
            labels.discard(label)
            if not labels:
                del self._sharing[lease]
                self._leases.release(lease.owner)
