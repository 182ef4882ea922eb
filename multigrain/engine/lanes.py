"""The lanes of an engine's decoder processes; the daemon plans with the same ones.

Light: the daemon imports it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Lane(Enum):
    """Which decoder processes decode an image.

    ORDINARY: it takes little time and memory. LARGE: more, in processes at a low priority, so that
    ordinary images are not late for it. SLOW: one process that takes only CPU time that nothing
    else wants, for the most expensive images, those of penalized clients, and those whose first
    attempt was ended.
    """

    ORDINARY = "ordinary"
    LARGE = "large"
    SLOW = "slow"


ORDINARY_SECONDS: Final = 0.1
"""Estimated CPU seconds that decoding an ordinary image takes at most."""

# Estimated CPU seconds and bytes that decoding the most expensive images of two lanes takes. Photos
# of 24 megapixels of any kind must be large ones at most: slow ones get no CPU time while an engine
# is busy.
_MOST: Final = {Lane.ORDINARY: (ORDINARY_SECONDS, 64 << 20), Lane.LARGE: (2.5, 320 << 20)}


def lane_of(seconds: float, size: int, *, penalized: bool) -> Lane:
    """The lane in which an image is decoded first.

    Args:
        seconds: CPU time to decode it, as estimated.
        size: bytes of memory to decode it, as estimated.
        penalized: whether its client has sent harmful images.
    """
    if not penalized:
        for lane, (most_seconds, most_bytes) in _MOST.items():
            if seconds <= most_seconds and size <= most_bytes:
                return lane
    return Lane.SLOW
