"""Admission: which requests are accepted, by items, bytes and the engine's measured rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog

from multigrain.engine.protocol import Ready
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import ImageRequest
from multigrain_server.models.metrics import ServingMetrics

_log = structlog.get_logger(__name__)

# The rate is measured over windows of at least so many seconds and images.
_WINDOW_SECONDS = 0.25
_WINDOW_ITEMS = 8
# Weight of the newest window in the moving average.
_NEWEST = 0.3
# Longest time over which the retries of refused requests are spread.
_SPREAD_NS = 5_000_000_000
_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 10.0
# Share of the remaining time that may be planned: measured rates vary, and an answer needs time
# to reach its caller. A queue of this length keeps an engine as busy as a longer one would.
_USABLE = 0.75
# Share of the images in flight that is computed before refused requests are retried: retries
# arrive no faster than the engine works, the rest keeps it busy, and nobody retries many times.
_DONE_BEFORE_RETRY = 0.5
_LOG_SECONDS = 10.0
# Share of the rate that an engine reached in its warm-up, with nothing to decode or to answer.
_PROMISED = 0.7


@dataclass(slots=True)
class _Caller:
    """Images of one caller in flight, and the latest of their deadlines; 0 = none."""

    items: int
    deadline_ns: int


class Flow:
    """The images in flight in one engine, and the rate at which it answers.

    Args:
        rate: images per second, to begin with; 0 = unknown.
        full: with so many images in flight the engine is never idle, so that the rate at which it
            answers is the rate that it is capable of.
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
        """``answered`` by the engine: dropped images say nothing about its rate."""
        known = self._callers[caller]
        known.items -= items
        if not known.items:
            del self._callers[caller]
        self.items -= items
        if self._window_ns:
            self._measure(items if answered else 0)

    def seconds_before(self, caller: int, items: int, deadline_ns: int) -> float:
        """Seconds until images that arrive now would be computed, with all those that would be
        computed before the last of them: engines compute the images of different callers in
        rotation, and among equals the one with the earliest deadline first. 0 while the rate is
        unknown."""
        if not self.rate:
            return 0.0
        own = self._callers.get(caller)
        rounds = items + (own.items if own is not None else 0)
        before = rounds
        for number, other in self._callers.items():
            if number == caller:
                continue
            urgent = 0 < other.deadline_ns <= (deadline_ns or other.deadline_ns)
            before += other.items if urgent else min(other.items, rounds)
        return before / self.rate

    def retry_seconds(self, items: int, wait: float) -> float:
        """Seconds after which a refused request should be retried, at least ``wait``.

        Each refused request gets a later time, spaced at the engine's rate: if all were retried
        at once, most would be refused again. The spread is bounded: not all are retried.
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
            # The engine may be idle from now on.
            self._window_ns = 0


class Engine(Protocol):
    """What computes the images; ``ready`` has its measured rate."""

    ready: Ready | None


class Admission:
    """Counts the images in flight, and refuses requests before anything is decoded or sent.

    A request is admitted whole or not at all, whichever API it came by, and only if it can be
    answered within its deadline at the engine's measured rate: an image that is admitted and then
    dropped takes time from those that could have been answered.

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
        """Images in flight, over all models."""
        return self._items

    def drain(self) -> None:
        """Admits nothing from now on."""
        self._draining = True

    @contextmanager
    def admit(self, request: ImageRequest, engine: Engine) -> Iterator[None]:
        """Counts a request's images as in flight while the block runs.

        Raises:
            MultigrainError: OVERLOADED with the seconds after which there should be room;
                UNAVAILABLE when draining; INVALID_FIELD for more than the whole queue holds.
        """
        flow = self._flow(engine)
        items, size = len(request.images), sum(map(len, request.images))
        self._check(request, items, size, flow)
        self._add(items, size)
        flow.enter(request.caller, items, request.deadline_ns)
        answered = False
        try:
            yield
            answered = True
        finally:
            flow.leave(request.caller, items, answered=answered)
            self._add(-items, -size)

    def too_late(self, request: ImageRequest, engine: Engine) -> MultigrainError:
        """The error of a request that was admitted and yet could not be computed in time."""
        self._metrics.refused("late")
        return self._overloaded(
            "throughput dropped after admission",
            len(request.images),
            self._flow(engine),
            wait=_MIN_RETRY_SECONDS,
        )

    def _flow(self, engine: Engine) -> Flow:
        flow = self._flows.get(engine)
        if flow is None:
            ready = engine.ready
            rate, busy = (ready.images_per_second, ready.busy_items) if ready else (0.0, 16)
            flow = Flow(_PROMISED * rate, busy, self._clock_ns)
            self._flows[engine] = flow
        return flow

    def _check(self, request: ImageRequest, items: int, size: int, flow: Flow) -> None:
        if self._draining:
            self._metrics.refused("draining")
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                "the server is shutting down: send the request to another one",
                retry_after=1.0,
            )
        config = self._config
        if size > config.queue_bytes:
            self._metrics.refused("bytes")
            raise MultigrainError.field(
                "images",
                f"have {size} bytes together, more than the {config.queue_bytes} that the server "
                "accepts at a time: send fewer in a request",
            )
        if self._items + items > config.queue_items:
            self._metrics.refused("queue_full")
            excess = self._items + items - config.queue_items
            raise self._overloaded(
                f"{self._items} images are in flight, the limit is {config.queue_items}",
                items,
                flow,
                wait=excess / flow.rate if flow.rate else 1.0,
            )
        if self._bytes + size > config.queue_bytes:
            self._metrics.refused("bytes")
            share = (self._bytes + size - config.queue_bytes) / max(self._bytes, 1)
            raise self._overloaded(
                f"{self._bytes} bytes of images are in flight, the limit is {config.queue_bytes}",
                items,
                flow,
                wait=share * self._items / flow.rate if flow.rate else 1.0,
            )
        self._check_deadline(request, items, flow)

    def _check_deadline(self, request: ImageRequest, items: int, flow: Flow) -> None:
        # An empty engine gets the images in any case: it knows best what it can do.
        if not request.deadline_ns or not flow.items:
            return
        left = _USABLE * (request.deadline_ns - self._clock_ns()) / 1e9
        # Everything in flight is the most that can be computed before it.
        if not flow.rate or (flow.items + items) / flow.rate <= left:
            return
        seconds = flow.seconds_before(request.caller, items, request.deadline_ns)
        if seconds <= left:
            return
        self._metrics.refused("late")
        raise self._overloaded(
            f"it would answer in {seconds:.2f} s, after the deadline", items, flow, seconds - left
        )

    def _overloaded(self, why: str, items: int, flow: Flow, wait: float) -> MultigrainError:
        done = _DONE_BEFORE_RETRY * flow.items / flow.rate if flow.rate else 0.0
        delay = flow.retry_seconds(items, max(wait, done, _MIN_RETRY_SECONDS))
        delay = min(delay, _MAX_RETRY_SECONDS)
        self._log_refusal(why)
        return MultigrainError(
            ErrorKind.OVERLOADED,
            f"the server is full ({why}): try again in {delay:.2f} s",
            retry_after=delay,
        )

    def _log_refusal(self, why: str) -> None:
        """Logs now and then: a line for each refusal would add to the load."""
        self._refused += 1
        now = self._clock_ns() / 1e9
        if now - self._logged >= _LOG_SECONDS:
            _log.warning("overloaded", refused_requests=self._refused, reason=why)
            self._logged, self._refused = now, 0

    def _add(self, items: int, size: int) -> None:
        self._items += items
        self._bytes += size
        self._metrics.inflight.set(self._items)
        self._metrics.inflight_bytes.set(self._bytes)
