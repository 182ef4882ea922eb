"""The images in flight in one engine: how fast they are answered, and how long new ones wait."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from multigrain.engine.lanes import ORDINARY_SECONDS, Lane, lane_of
from multigrain_server.engines.images import ImageRequest
from multigrain_server.serving.shares import Sender

# The rate is measured over windows of at least so many seconds and images.
_WINDOW_SECONDS = 0.25
_WINDOW_ITEMS = 8
# Weight of the newest window in the moving average, unless it has so many images and is below or
# above these parts of the average: then the engine works at another pace. As images are answered in
# batches, a window may show up to a third more than there is.
_NEWEST = 0.3
_SLOWER = 0.75
_FASTER = 1.5
# Longest time over which the retries of refused requests are spread, and the clients for whom
# the newest retry is remembered.
_SPREAD_NS = 5_000_000_000
_RETRYING_CLIENTS = 1024
# Estimates are upper ones: until it is measured, a decoder does so many estimated seconds in a
# second.
_LANE_RATE = 2.0


_NO_LANES = (0.0, 0.0)


class Work(NamedTuple):
    """What images cost an engine.

    Attributes:
        images: number of those that are decoded in the ordinary lane, or not at all.
        units: their cost; an image that is decoded faster than it is computed costs 1.
        lanes: estimated CPU seconds to decode the others in the lanes of large and of slow images.
            No lane waits for another one.
    """

    images: float
    units: float
    lanes: tuple[float, float] = _NO_LANES


@dataclass(slots=True)
class _Caller:
    """What a caller has in flight, and the latest of the deadlines; 0 = none."""

    connection: str
    requests: int = 0
    units: float = 0.0
    lanes: list[float] = field(default_factory=lambda: [0.0, 0.0])
    deadline_ns: int = 0


@dataclass(slots=True)
class _Client:
    """The same of a client, with its callers."""

    callers: dict[int, _Caller] = field(default_factory=dict)
    units: float = 0.0
    lanes: list[float] = field(default_factory=lambda: [0.0, 0.0])


class _Rate:
    """How much is answered in a second, measured while there is always something to do.

    Args:
        rate: to begin with; 0 = unknown.
        clock_ns: CLOCK_MONOTONIC, in nanoseconds.
        images: that a measurement needs.

    Attributes:
        rate: in units of work per second; 0 = unknown.
    """

    def __init__(self, rate: float, clock_ns: Callable[[], int], images: int) -> None:
        self.rate = rate
        self._clock_ns = clock_ns
        self._least_images = images
        self._running_since_ns = 0
        self._measured_ns = 0
        self._images, self._work = 0.0, 0.0

    def at_most(self, together: float) -> float:
        """The rate, or less if so little was answered since the measurement began.

        An engine that has become slow is known before it has answered enough to be measured.

        Args:
            together: work that is answered at a time.
        """
        seconds = self._seconds
        return min(self.rate, (self._work + together) / seconds) if seconds else self.rate

    @property
    def _seconds(self) -> float:
        """How long the measurement has run."""
        since = self._running_since_ns
        return (self._measured_ns + (self._clock_ns() - since if since else 0)) / 1e9

    def start(self) -> None:
        """From now on there is something to do, as before if it was paused."""
        if not self._running_since_ns:
            self._running_since_ns = self._clock_ns()

    def pause(self) -> None:
        """There is nothing to do, until the next start."""
        self._measured_ns = int(1e9 * self._seconds)
        self._running_since_ns = 0

    def stop(self) -> None:
        """Drops a measurement: there may be nothing to do from now on."""
        self._running_since_ns = self._measured_ns = 0
        self._images, self._work = 0.0, 0.0

    def answered(self, images: float, work: float) -> bool:
        """Counts images; returns whether a measurement is complete. Another one begins then."""
        if not self._running_since_ns:
            return False
        self._images += images
        self._work += work
        seconds = self._seconds
        if seconds < _WINDOW_SECONDS or self._images < self._least_images:
            return False
        newest = self._work / seconds
        changed = not _SLOWER * self.rate < newest < _FASTER * self.rate
        weight = 1.0 if changed and self._images >= _WINDOW_ITEMS else _NEWEST
        self.rate += (weight if self.rate else 1.0) * (newest - self.rate)
        self.stop()
        self.start()
        return True


class Flow:
    """The images in flight in one engine, and the rate at which it answers.

    Rates and waits are in units of :class:`Work`. Each lane is measured on its own, and none waits
    for another one.

    Args:
        rate: images per second, to begin with; 0 = unknown.
        full: with so many images in flight the engine is never idle, so that the rate at which it
            answers is the rate that it is capable of.
        clock_ns: CLOCK_MONOTONIC, in nanoseconds.
        decoders: number of images that it decodes at a time.
    """

    def __init__(
        self,
        rate: float,
        full: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        decoders: int = 1,
    ) -> None:
        self._rate = _Rate(rate, clock_ns, _WINDOW_ITEMS)
        # As many processes decode large images, and one decodes slow ones.
        self._lane_rates = [_Rate(_LANE_RATE * count, clock_ns, 1) for count in (decoders, 1)]
        self.units = 0.0
        self.lanes = [0.0, 0.0]
        self._images = 0.0
        self._full = full
        # Requests were refused by the rate: so many times it is measured whatever is in flight.
        self._limited = 0
        self._waiting_until_ns = 0
        self._clock_ns = clock_ns
        # Units of a second of decoding. Not of the measured rate: a measure must not change.
        self._units_per_second = rate / decoders
        self._clients: dict[str, _Client] = {}
        self._retry_ns: OrderedDict[str, int] = OrderedDict()

    @property
    def rate(self) -> float:
        """Units that are answered in a second; 0 = unknown."""
        # An engine that is never idle has one batch in its network and another one behind it.
        batch = self._full / 2 * max(1.0, self.units / self._images if self._images else 1.0)
        return self._rate.at_most(batch)

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self._clients

    @property
    def awaited(self) -> bool:
        """Whether refused requests are still to be retried."""
        return self._clock_ns() < self._waiting_until_ns

    def work(self, request: ImageRequest) -> Work:
        """The work of a request; images that need no decoding have no costs."""
        images = len(request.images)
        units, large, slow = float(images - len(request.costs)), 0.0, 0.0
        for cost in request.costs:
            lane = lane_of(cost.seconds, cost.bytes, penalized=request.penalized)
            if lane is Lane.ORDINARY:
                units += max(1.0, cost.seconds * self._units_per_second)
                continue
            images -= 1
            if lane is Lane.LARGE:
                large += max(cost.seconds, ORDINARY_SECONDS)
            else:
                slow += max(cost.seconds, ORDINARY_SECONDS)
        return Work(images, units, (large, slow))

    def enter(self, sender: Sender, work: Work, deadline_ns: int) -> None:
        client = self._clients.setdefault(sender.client, _Client())
        caller = client.callers.setdefault(sender.caller, _Caller(sender.connection))
        caller.requests += 1
        caller.deadline_ns = max(caller.deadline_ns, deadline_ns)
        self._images += work.images
        for counts in (self, client, caller):
            counts.units += work.units
        if self._images >= self._full or self._limited:
            self._rate.start()
        if work.lanes == _NO_LANES:
            return
        for counts in (self, client, caller):
            for lane, seconds in enumerate(work.lanes):
                counts.lanes[lane] += seconds
        for rate, seconds in zip(self._lane_rates, work.lanes, strict=True):
            if seconds:
                rate.start()

    def answered(self, sender: Sender, images: float, units: float) -> None:
        """Some of a sender's images in the ordinary lane are answered."""
        client = self._clients[sender.client]
        self._images -= images
        for counts in (self, client, client.callers[sender.caller]):
            counts.units -= units
        if self._rate.answered(images, units):
            self._limited = max(0, self._limited - 1)

    def leave(self, sender: Sender, work: Work, *, answered: bool) -> None:
        """A request ends.

        Args:
            sender: of the request.
            work: without the images that :meth:`answered` has counted.
            answered: by the engine: dropped images say nothing about its rate.
        """
        client = self._clients[sender.client]
        caller = client.callers[sender.caller]
        self._images -= work.images
        for counts in (self, client, caller):
            counts.units -= work.units
            if work.lanes != _NO_LANES:
                for lane, seconds in enumerate(work.lanes):
                    counts.lanes[lane] -= seconds
        caller.requests -= 1
        if not caller.requests:
            del client.callers[sender.caller]
        if not client.callers:
            del self._clients[sender.client]
        if not self._clients:  # without what rounding left of them
            self._images, self.units, self.lanes = 0.0, 0.0, [0.0, 0.0]
        if answered and self._rate.answered(work.images, work.units):
            self._limited = max(0, self._limited - 1)
        if not self._limited and self._images < self._full:
            self._rate.stop()
        elif self.idle:
            self._rate.pause()
        if work.lanes == _NO_LANES:
            return
        for rate, seconds, left in zip(self._lane_rates, work.lanes, self.lanes, strict=True):
            if answered and seconds:
                rate.answered(1, seconds)
            if left < ORDINARY_SECONDS / 2:
                rate.stop()

    def limited(self) -> None:
        """As much is in flight as can be answered in time, by the rate.

        These may be fewer images than keep an engine busy: until its rate is measured twice
        more, it is measured with those.
        """
        self._limited = 2  # the next measurement begins when one ends, not at a refusal
        if self._images:
            self._rate.start()

    def seconds_at_most(self, work: Work) -> float:
        """Seconds until everything in flight is computed, and ``work`` with it; 0 = unknown."""
        rate = self.rate
        quick = (self.units + work.units) / rate if rate else 0.0
        if work.lanes == _NO_LANES and not any(self.lanes):
            return quick
        return max(
            quick, *self._lane_seconds(a + b for a, b in zip(self.lanes, work.lanes, strict=True))
        )

    def seconds_before(self, sender: Sender, work: Work, deadline_ns: int) -> float:
        """Seconds until images that arrive now would be computed, with all those that would be
        computed before the last of them; 0 while the rate is unknown.

        Engines give every client the same share of their time, and the callers of a client the
        same share of it. On a connection, the earliest deadline goes first. While refused requests
        wait, a caller that is answered makes room for another one, which takes its share too.
        """
        client = self._clients.get(sender.client)
        callers = client.callers if client is not None else {}
        own = callers.get(sender.caller)
        others = [caller for number, caller in callers.items() if number != sender.caller]
        clients = [other for name, other in self._clients.items() if name != sender.client]
        lanes = [0.0, 0.0]
        for lane, seconds in enumerate(work.lanes):
            if seconds:
                turn = seconds + (own.lanes[lane] if own is not None else 0.0)
                turn = _in_turns(turn, (other.lanes[lane] for other in others))
                lanes[lane] = _in_turns(turn, (other.lanes[lane] for other in clients))
        slowest = max(self._lane_seconds(lanes))
        if not self.rate or not work.units:
            return slowest
        turn = work.units + (own.units if own is not None else 0.0)
        before = turn
        replaced = self.awaited
        for other in others:
            urgent = 0 < other.deadline_ns <= (deadline_ns or other.deadline_ns)
            first = urgent and other.connection == sender.connection
            share = turn if replaced else min(other.units, turn)
            before += max(share, other.units) if first else share
        before = _in_turns(before, (other.units for other in clients))
        return max(slowest, before / self.rate)

    def retry_seconds(self, client: str, work: Work, wait: float) -> float:
        """Seconds after which a refused request should be retried, at least ``wait``.

        Each refused request of a client gets a later time, spaced at the engine's rate: if all
        were retried at once, most would be refused again. The spread is bounded: not all are
        retried.
        """
        now = self._clock_ns()
        quick = work.units / self.rate if self.rate else 0.0
        apart = int(1e9 * max(quick, *self._lane_seconds(work.lanes)))
        soonest = now + int(1e9 * wait)
        latest = self._retry_ns.pop(client, 0)
        latest = min(max(latest + apart, soonest), soonest + _SPREAD_NS)
        self._retry_ns[client] = latest
        self._waiting_until_ns = max(self._waiting_until_ns, latest)
        if len(self._retry_ns) > _RETRYING_CLIENTS:
            self._retry_ns.popitem(last=False)
        return (latest - now) / 1e9

    def _lane_seconds(self, lanes: Iterable[float]) -> list[float]:
        """Seconds that the lanes need for so many estimated seconds of decoding."""
        return [seconds / rate.rate for seconds, rate in zip(lanes, self._lane_rates, strict=True)]


def _in_turns(own: float, others: Iterable[float]) -> float:
    """What is done until ``own`` is, if everybody gets the same share of the time."""
    return own + sum(min(other, own) for other in others)
