"""Fairness between callers: each gets one image computed before anyone gets the next."""

from __future__ import annotations

from multigrain.engine.item import Item

_NEVER = 1 << 63


class Turns:
    """Ranks items as they come (start-time fair queueing with images of equal cost).

    A caller's images take successive turns, and one who comes new takes the next turn: whoever
    sends hundreds of images at once waits for them without anyone else waiting for them too,
    and is not overtaken for ever either. Within a turn the earliest deadline goes first, then
    who came first.
    """

    def __init__(self) -> None:
        self._now = 0
        self._arrivals = 0
        # Last turn, and images inside, of each caller that has any.
        self._last: dict[int, int] = {}
        self._inside: dict[int, int] = {}

    def enter(self, item: Item) -> None:
        """Sets the item's rank."""
        caller = item.request.caller
        turn = max(self._now, self._last.get(caller, 0)) + 1
        self._last[caller] = turn
        self._inside[caller] = self._inside.get(caller, 0) + 1
        self._arrivals += 1
        item.rank = (turn, item.request.deadline_ns or _NEVER, self._arrivals)

    def begin(self, item: Item) -> None:
        """It is this item's turn."""
        self._now = max(self._now, item.rank[0])

    def leave(self, item: Item) -> None:
        """The item is done with, one way or another."""
        caller = item.request.caller
        self._inside[caller] -= 1
        if not self._inside[caller]:
            del self._inside[caller], self._last[caller]
