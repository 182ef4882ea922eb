"""One image on its way through an engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.wire import Submit

#: Orders items: turn, deadline, arrival. Smaller goes first.
Rank = tuple[int, int, int]

# For an answer's way to its caller, which on a busy host takes tens of milliseconds; of short
# deadlines a twentieth.
_WAY_BACK_NS = 100_000_000


class Stage(Enum):
    """Where an image is."""

    WAITING = "waiting"
    DECODING = "decoding"
    DECODED = "decoded"
    COMPUTING = "computing"


class Drop(Enum):
    """Why an image was not computed: its caller went away, its deadline was too near for any
    engine like this, or there was too much before it."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    BUSY = "busy"


@dataclass(slots=True, eq=False)
class Item:
    """An image and what has become of it.

    Attributes:
        pixels: uint8 (S, S, 3) once it is decoded.
        tensor: instead, float32 (3, S, S), if it came prepared.
    """

    request: Submit
    data: bytes
    received_ns: int = field(default_factory=time.monotonic_ns)
    decode_ns: int = 0
    pixels: NDArray[np.uint8] | None = None
    tensor: NDArray[np.float32] | None = None
    stage: Stage = Stage.WAITING
    cancelled: bool = False
    rank: Rank = (0, 0, 0)

    def __lt__(self, other: Item) -> bool:
        return self.rank < other.rank

    @property
    def decoded_bytes(self) -> int:
        """What it takes once it is decoded."""
        return (12 if self.request.tensor else 3) * self.request.resolution**2

    def late(self, finish_ns: int) -> bool:
        """Whether finishing then would be too late for the answer to arrive in time."""
        deadline = self.request.deadline_ns
        if not deadline:
            return False
        way_back = min(_WAY_BACK_NS, (deadline - self.received_ns) // 20)
        return deadline < finish_ns + way_back
