"""What one engine has before it, and how fast it works that off, as measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

from multigrain.engine.protocol import Ready
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.metrics import ServingMetrics

_WINDOW_SECONDS = 0.25
_WINDOW_ITEMS = 8
_NEWEST = 0.3
_SPREAD_NS = 5_000_000_000


@dataclass(slots=True)
class _Caller:
    """Images of one caller that are in work, and the latest of their deadlines; 0 = none."""

    items: int
    deadline_ns: int


class Flow:
    """Images on their way into and out of one engine.

    Args:
        rate: images a second, to begin with; 0 = not known.
        full: images in work from which on the engine is busy all the time, so that its pace is
            a measure of what it can do.
        clock_ns: CLOCK_MONOTONIC, in nanoseconds.
    """

    def __init__(
        self, rate: float, full: int, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.rate = rate
        self.items = 0
        self._full = full
        self._clock_ns = clock_ns
        self._callers: dict[int, _Caller] = {}
        self._window_ns = 0
        self._finished = 0
        self._retry_ns = 0

    def enter(self, caller: int, items: int, deadline_ns: int) -> None:
        self.items += items
        known = self._callers.get(caller)
        if known is None:
            self._callers[caller] = _Caller(items, deadline_ns)
        else:
            known.items += items
            known.deadline_ns = max(known.deadline_ns, deadline_ns)
        if not self._window_ns and self.items >= self._full:
            self._window_ns, self._finished = self._clock_ns(), 0

    def leave(self, caller: int, items: int, *, answered: bool) -> None:
        """``answered`` by the engine: what was given up says nothing of its pace."""
        known = self._callers[caller]
        known.items -= items
        if not known.items:
            del self._callers[caller]
        self.items -= items
        if self._window_ns:
            self._measure(items if answered else 0)

    def seconds_before(self, caller: int, items: int, deadline_ns: int) -> float:
        """How long images would take that came now, with all that would be computed before the
        last of them: engines let callers take turns, and of equals the earliest deadline goes
        first. 0 while nothing is known of the pace."""
        if not self.rate:
            return 0.0
        own = self._callers.get(caller)
        turns = items + (own.items if own is not None else 0)
        before = turns
        for number, other in self._callers.items():
            if number == caller:
                continue
            urgent = 0 < other.deadline_ns <= (deadline_ns or other.deadline_ns)
            before += other.items if urgent else min(other.items, turns)
        return before / self.rate

    def retry_seconds(self, items: int, wait: float) -> float:
        """When to come again who is refused now and has to wait ``wait`` seconds at least.

        Each who is refused gets a later time, as far apart as the engine is fast: if all came
        back at once, most would be refused again. Within limits: not all come back.
        """
        now = self._clock_ns()
        apart = int(1e9 * items / self.rate) if self.rate else 0
        soonest = now + int(1e9 * wait)
        self._retry_ns = min(max(self._retry_ns + apart, soonest), soonest + _SPREAD_NS)
        return (self._retry_ns - now) / 1e9

    def _measure(self, items: int) -> None:
        self._finished += items
        now = self._clock_ns()
        seconds = (now - self._window_ns) / 1e9
        if seconds >= _WINDOW_SECONDS and self._finished >= _WINDOW_ITEMS:
            newest = self._finished / seconds
            self.rate += (_NEWEST if self.rate else 1.0) * (newest - self.rate)
            self._window_ns, self._finished = now, 0
        if self.items < self._full:
            # From here on it may be idle now and then.
            self._window_ns = 0


# MERGED: Who may enter: one rule, in items, bytes and time, for every call that brings images.


_LOG = logging.getLogger(__name__)

_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 10.0
# Of the time that is left: what is measured varies, and an answer needs its way back. A queue of
# this length keeps an engine as busy as a longer one would.
_USABLE = 0.75
# Of what is before an engine must be done before those who were refused come again: as they come no
# faster than it works, the rest keeps it busy, and nobody asks many times over meanwhile.
_DONE_BEFORE_RETRY = 0.5
_LOG_SECONDS = 10.0
# Of the rate that an engine reached while it was warmed up, with nothing to decode or to answer.
_PROMISED = 0.7


class Engine(Protocol):
    """What computes the images; ``ready`` says what it promises."""

    ready: Ready | None


@dataclass(frozen=True, slots=True)
class Load:
    """What a request brings: ``items`` images of ``size`` bytes together, of one caller, wanted
    before ``deadline_ns`` on CLOCK_MONOTONIC (0 = none)."""

    items: int
    size: int
    caller: int = 0
    deadline_ns: int = 0


class Admission:
    """Counts what is inside. Refuses before anything is decoded or sent anywhere.

    A request is admitted whole or not at all, whatever kind of call it came by, and only if it
    can be answered within its deadline at the engine's measured pace: what is let in and then
    given up would take the time of those that could have been answered.

    Args:
        config: limits.
        metrics: where refusals are counted.
        clock_ns: CLOCK_MONOTONIC, in nanoseconds.
    """

    def __init__(
        self,
        config: ServingConfig,
        metrics: ServingMetrics,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._clock_ns = clock_ns
        self._config = config
        self._metrics = metrics
        self._items = 0
        self._bytes = 0
        self._draining = False
        self._flows: WeakKeyDictionary[Engine, Flow] = WeakKeyDictionary()
        self._refused = 0
        self._logged = -_LOG_SECONDS

    @property
    def items(self) -> int:
        return self._items

    def drain(self) -> None:
        """Admits nothing from now on."""
        self._draining = True

    @contextmanager
    def admit(self, load: Load, engine: Engine) -> Iterator[None]:
        """Holds room while the block runs.

        Raises:
            MultigrainError: OVERLOADED with the seconds after which there should be room;
                UNAVAILABLE when draining; INVALID_FIELD for more than the whole queue holds.
        """
        flow = self._flow(engine)
        self._check(load, flow)
        self._add(load.items, load.size)
        flow.enter(load.caller, load.items, load.deadline_ns)
        answered = False
        try:
            yield
            answered = True
        finally:
            flow.leave(load.caller, load.items, answered=answered)
            self._add(-load.items, -load.size)

    def too_late(self, load: Load, engine: Engine) -> MultigrainError:
        """For what was admitted and yet could not be computed in time."""
        self._metrics.refused("late")
        return self._overloaded(
            "it has become slower than it was", load, self._flow(engine), wait=_MIN_RETRY_SECONDS
        )

    def _flow(self, engine: Engine) -> Flow:
        flow = self._flows.get(engine)
        if flow is None:
            ready = engine.ready
            rate, busy = (ready.images_per_second, ready.busy_items) if ready else (0.0, 16)
            flow = Flow(_PROMISED * rate, busy, self._clock_ns)
            self._flows[engine] = flow
        return flow

    def _check(self, load: Load, flow: Flow) -> None:
        if self._draining:
            self._metrics.refused("draining")
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                "the server is shutting down: send the request to another one",
                retry_after=1.0,
            )
        config = self._config
        if load.size > config.queue_bytes:
            self._metrics.refused("bytes")
            raise MultigrainError.field(
                "images",
                f"{load.size} bytes together, more than the {config.queue_bytes} that the server "
                "holds at a time: send fewer in a request",
            )
        if self._items + load.items > config.queue_items:
            self._metrics.refused("queue_full")
            excess = self._items + load.items - config.queue_items
            raise self._overloaded(
                f"{self._items} images are in work, the limit is {config.queue_items}",
                load,
                flow,
                wait=excess / flow.rate if flow.rate else 1.0,
            )
        if self._bytes + load.size > config.queue_bytes:
            self._metrics.refused("bytes")
            share = (self._bytes + load.size - config.queue_bytes) / max(self._bytes, 1)
            raise self._overloaded(
                f"{self._bytes} bytes of images are in work, the limit is {config.queue_bytes}",
                load,
                flow,
                wait=share * self._items / flow.rate if flow.rate else 1.0,
            )
        self._check_deadline(load, flow)

    def _check_deadline(self, load: Load, flow: Flow) -> None:
        # An empty engine is asked in any case: it knows best what it can do.
        if not load.deadline_ns or not flow.items:
            return
        left = _USABLE * (load.deadline_ns - self._clock_ns()) / 1e9
        # All that is in work is the most that can be before it.
        if not flow.rate or (flow.items + load.items) / flow.rate <= left:
            return
        seconds = flow.seconds_before(load.caller, load.items, load.deadline_ns)
        if seconds <= left:
            return
        self._metrics.refused("late")
        raise self._overloaded(
            f"it would answer in {seconds:.2f} s, after the deadline", load, flow, seconds - left
        )

    def _overloaded(self, why: str, load: Load, flow: Flow, wait: float) -> MultigrainError:
        done = _DONE_BEFORE_RETRY * flow.items / flow.rate if flow.rate else 0.0
        delay = flow.retry_seconds(load.items, max(wait, done, _MIN_RETRY_SECONDS))
        delay = min(delay, _MAX_RETRY_SECONDS)
        self._tell(why)
        return MultigrainError(
            ErrorKind.OVERLOADED,
            f"the server is full ({why}): try again in {delay:.2f} s",
            retry_after=delay,
        )

    def _tell(self, why: str) -> None:
        """A line in the log now and then: one for each refusal would be work in itself."""
        self._refused += 1
        now = self._clock_ns() / 1e9
        if now - self._logged >= _LOG_SECONDS:
            _LOG.warning("overloaded, %d requests refused: %s", self._refused, why)
            self._logged, self._refused = now, 0

    def _add(self, items: int, size: int) -> None:
        self._items += items
        self._bytes += size
        self._metrics.inflight.set(self._items)
        self._metrics.inflight_bytes.set(self._bytes)
