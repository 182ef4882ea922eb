"""How fast a runtime computes on this machine, measured while a model is loaded.

A processor's instruction sets do not tell it: 8 bits are twice as fast as float32 with AVX2, but
may lose to bfloat16 on another processor, at another resolution or for another network.

Measuring takes one batch that OpenVINO compiles its kernels for, and at most ``_SECONDS`` more and
one batch. A runtime whose first batch already shows that it cannot win is not measured further.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from multigrain.engine.runtimes.base import Runtime

#: A less exact runtime must be this much faster: less is within the noise of a busy machine, and
#: exact results are worth more.
MIN_GAIN: Final = 1.1
_ROUNDS: Final = 5
_SECONDS: Final = 0.25
# Compiling the kernels takes up to a few tenths of a second, so that the first batch is slower than
# the others; not by half, if it takes longer than this.
_LONG: Final = 0.4
_HOPELESS: Final = 1.5

Clock = Callable[[], float]


def measure_speed(
    runtime: Runtime, resolution: int, to_beat: float = 0.0, clock: Clock = time.perf_counter
) -> float:
    """Images per second in batches of the best size: of the fastest batch, because other programs
    can only slow down a batch.

    Args:
        runtime: a loaded network.
        resolution: of its images.
        to_beat: images per second of a faster runtime, if one is known.
        clock: in seconds.
    """
    images = list(np.zeros((runtime.best_batch, resolution, resolution, 3), np.uint8))

    def seconds() -> float:
        start = clock()
        runtime.run_pixels(images)
        return max(clock() - start, 1e-9)

    least = seconds()
    if least > _LONG and len(images) / least < to_beat / _HOPELESS:
        return len(images) / least
    spent, least = 0.0, float("inf")
    for _ in range(_ROUNDS):
        one = seconds()
        least, spent = min(least, one), spent + one
        if spent >= _SECONDS:
            break
    return len(images) / least


def fastest(names: Sequence[str], speeds: Mapping[str, float]) -> str:
    """The runtime to use.

    Args:
        names: the most exact first.
        speeds: images per second of each.
    """
    best = names[0]
    for name in names[1:]:
        if speeds[name] >= MIN_GAIN * speeds[best]:
            best = name
    return best
