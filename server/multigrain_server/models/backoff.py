"""How long to wait before an engine is started again."""

from __future__ import annotations


class Backoff:
    """Nothing for the first start, then ``first`` seconds, doubled each time up to ``longest``."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._starts = 0

    def next(self) -> float:
        """Seconds to wait before the start that comes now."""
        doublings = self._starts - 1
        self._starts += 1
        # Not 2**n for any n: that number outgrows a float.
        return min(self._first * 2 ** min(doublings, 30), self._longest) if doublings >= 0 else 0.0

    def forgive(self) -> None:
        """Takes back the last start: its end has a known reason that will not come again."""
        self._starts = max(0, self._starts - 1)

    def reset(self) -> None:
        """After a time without trouble."""
        self._starts = 0
