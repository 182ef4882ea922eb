"""Delays that grow with each restart of a process."""

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


class Backoff:
    """Delays before the starts of a process: none for the first, then growing with each restart.

    Args:
        first: delay of the first restart in seconds, doubled with each further one.
        longest: upper bound in seconds.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._starts = 0
        #: The latest one, in seconds.
        self.delay = 0.0

    def next(self) -> float:
        """Seconds to wait before the next start."""
        self.delay = backoff_seconds(self._starts, self._first, self._longest)
        self._starts += 1
        return self.delay

    def forgive(self) -> None:
        """Does not count the last start: why it ended is known and will not happen again."""
        self._starts = max(0, self._starts - 1)

    def reset(self) -> None:
        """After a time without failures."""
        self._starts = 0
