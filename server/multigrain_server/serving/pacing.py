"""Clients whose messages come to nothing are read more slowly while others use the server."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from multigrain.errors import ErrorKind, MultigrainError

# What a client may waste per second beside others, and at once, in bytes.
_RATE = 4 << 20
_BURST = 16 << 20
# Also a small image is received, examined and answered.
_IMAGE = 16 << 10
# An image that was computed makes up for so many that were not: under overload, good clients are
# refused, too.
_CREDIT = 4
# What a client has wasted is forgotten after so many seconds, however much it was.
_LONGEST_SECONDS = 30.0
# So long after its last call a client counts as active.
_ACTIVE_SECONDS = 5.0
_CLIENTS = 1024
# A request that waits looks so often whether its client is alone by now.
_LOOK_SECONDS = 0.5
_WAITING = 64
_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Debtor:
    """A client that has wasted something lately.

    Attributes:
        until: when that is forgotten, on the clock.
        next: when its next request may be read, at the earliest.
        last: seconds that its last wasted request stands for.
        waiting: how many of its requests wait.
        unreadable: it has sent messages that could not be parsed or were too large.
    """

    until: float
    next: float
    last: float = 0.0
    waiting: int = 0
    unreadable: bool = False


class Pacing:
    """Delays the requests of clients whose images were refused or had errors.

    Receiving, copying and examining a request takes the daemon's time also if nothing comes of it,
    and admission sees a request only then. So each client has an allowance of 16 MiB of wasted
    requests, which grows by 4 MiB/s and by four times what it sends with success. Who has used it
    up waits before the next request is read, and flow control holds its bytes back. A client that
    is alone never waits.

    Args:
        clock: in seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._debtors: dict[str, _Debtor] = {}
        # Clients by their last call, the newest at the end.
        self._seen: OrderedDict[str, float] = OrderedDict()

    def counts(self, client: str) -> bool:
        """Whether the next request of a client is counted even if all its images are computed."""
        return client in self._debtors

    def count(self, client: str, computed: Collection[int], wasted: Collection[int]) -> None:
        """Counts a request that is answered.

        Args:
            client: who sent it.
            computed: sizes of its images that were computed, in bytes.
            wasted: sizes of the others.
        """
        debtor = self._debtors.get(client)
        if debtor is None and not wasted:
            return
        now = self._clock()
        if debtor is None:
            while len(self._debtors) >= _CLIENTS:
                del self._debtors[next(iter(self._debtors))]
            debtor = self._debtors[client] = _Debtor(now, now)
        lost, made = _seconds_of(wasted), _seconds_of(computed)
        until = debtor.until + lost - _CREDIT * made
        debtor.until = min(max(now, until), now + _LONGEST_SECONDS)
        debtor.last = lost

    def count_unreadable(self, client: str, size: int) -> None:
        """Counts a message that could not be parsed, or was too large for its method.

        Args:
            client: who sent it.
            size: in bytes.
        """
        self.count(client, [], [size])
        self._debtors[client].unreadable = True

    def sends_unreadable(self, client: str) -> bool:
        """Whether a client has lately sent such messages: also its other requests wait then."""
        debtor = self._debtors.get(client)
        return debtor is not None and debtor.unreadable

    async def turn(self, client: str) -> None:
        """Waits until the next request of a client may be read.

        Raises:
            MultigrainError: OVERLOADED if too many of the client's requests wait.
        """
        self._see(client)
        debtor = self._debtors.get(client)
        if debtor is None:
            return
        if debtor.waiting >= _WAITING:
            raise MultigrainError(
                ErrorKind.OVERLOADED,
                f"{debtor.waiting} requests of {client[:80]} wait because too many before them "
                "were refused or had no valid images: send fewer at a time",
                retry_after=_RETRY_SECONDS,
            )
        debtor.waiting += 1
        try:
            waited = False
            while (seconds := self._seconds(client, debtor)) > 0:
                waited = True
                await self._sleep(min(seconds, _LOOK_SECONDS))
            if waited:
                # What it is worth is known when it is answered. Until then it counts as the last.
                debtor.next = self._clock() + debtor.last
        finally:
            debtor.waiting -= 1
            if not debtor.waiting and debtor.until <= self._clock():
                self._debtors.pop(client, None)

    def _seconds(self, client: str, debtor: _Debtor) -> float:
        """How long the client's next request must still wait."""
        now = self._clock()
        seconds = max(debtor.until - _BURST / _RATE, debtor.next) - now
        return seconds if self._others_are_active(client, now) else 0.0

    def _see(self, client: str) -> None:
        self._seen[client] = self._clock()
        self._seen.move_to_end(client)
        while len(self._seen) > _CLIENTS:
            self._seen.popitem(last=False)

    def _others_are_active(self, client: str, now: float) -> bool:
        for other in reversed(self._seen):
            if other != client:
                return now - self._seen[other] < _ACTIVE_SECONDS
        return False


def _seconds_of(sizes: Collection[int]) -> float:
    """The time in which the allowance grows by images of these sizes."""
    return (sum(sizes) + len(sizes) * _IMAGE) / _RATE
