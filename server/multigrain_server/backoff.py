"""Growing waits between restarts."""

from __future__ import annotations

import math

_MAX_DOUBLINGS = 30  # more of them would exceed the range of a float at some point


def backoff_seconds(failures: int, first: float, longest: float = math.inf) -> float:
    """How long to wait before the next start.

    Args:
        failures: in a row so far; without any there is no wait.
        first: wait after the first failure in seconds, doubled with each further one.
        longest: upper bound in seconds.
    """
    if failures <= 0:
        return 0.0
    return min(first * 2.0 ** min(failures - 1, _MAX_DOUBLINGS), longest)
