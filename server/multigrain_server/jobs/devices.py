"""Which devices this machine gives to jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass

KINDS = ("cpu", "gpu", "ascend")

_PART = re.compile(r"^(cpu|gpu|ascend):(\d{1,4})(?:-(\d{1,4}))?$")


@dataclass(frozen=True)
class Inventory:
    """Leasable units of each kind: CPU slots, and indices of GPUs and Ascend NPUs.

    A CPU slot is the right of one job to use the cores, however many workers it starts.
    """

    cpu: tuple[int, ...] = (0,)
    gpu: tuple[int, ...] = ()
    ascend: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Inventory:
        """Reads ``"cpu:2,gpu:0-3,gpu:6"``: number of CPU slots, indices or ranges of the others.

        Raises:
            ValueError: with what is wrong and how to write it.
        """
        units: dict[str, set[int]] = {kind: set() for kind in KINDS}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            match = _PART.match(part)
            if match is None:
                raise ValueError(
                    f'"{part}" is not a device list; write "cpu:N" (jobs that share the CPU), '
                    '"gpu:0-7" or "ascend:0" (indices), joined by commas'
                )
            kind, first, last = match[1], int(match[2]), match[3]
            if kind == "cpu":
                if last is not None:
                    raise ValueError(f'"{part}": cpu takes a number of slots, such as "cpu:2"')
                units["cpu"] |= set(range(first))
            else:
                stop = int(last) if last is not None else first
                if stop < first:
                    raise ValueError(f'"{part}" is an empty range')
                units[kind] |= set(range(first, stop + 1))
        return cls(*(tuple(sorted(units[kind])) for kind in KINDS))

    def units(self, kind: str) -> tuple[int, ...]:
        """The units of a kind of KINDS."""
        return {"cpu": self.cpu, "gpu": self.gpu, "ascend": self.ascend}[kind]

    def __str__(self) -> str:
        parts = [f"cpu:{len(self.cpu)}"]
        parts += [f"{kind}:{i}" for kind in ("gpu", "ascend") for i in self.units(kind)]
        return ",".join(parts)
