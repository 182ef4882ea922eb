"""The engines of the scenarios."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from tests.simulation.engine import Pace

#: By images per second. Slow ones are like CPUs, where batches gain little and are small; fast ones
#: like accelerators, where a batch of one image takes half as long as the best.
PACES: Final = MappingProxyType(
    {
        5: Pace(5, best_batch=4, fixed=0.1, decoders=2),
        12: Pace(12, best_batch=4, fixed=0.1, decoders=2),
        50: Pace(50, best_batch=8, fixed=0.2, decoders=4),
        200: Pace(200, best_batch=16, fixed=0.3, decoders=8),
        2000: Pace(2000, best_batch=32, fixed=0.5, decoders=16),
    }
)
