"""Admission: which requests are accepted, by what they cost and whom they are from."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog

from multigrain.engine.protocol import Ready
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.images import ImageRequest
from multigrain_server.models.metrics import Refusal, ServingMetrics
from multigrain_server.serving.flow import Flow, Work
from multigrain_server.serving.shares import Load, Sender, Shares, Shortage

_log = structlog.get_logger(__name__)

_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 10.0
# Share of the remaining time that may be planned: measured rates vary, and an answer needs time
# to reach its caller. A queue of this length keeps an engine as busy as a longer one would.
_USABLE = 0.75
# Share of the images in flight that is computed before refused requests are retried: retries
# arrive no faster than the engine works, the rest keeps it busy, and nobody retries many times.
_DONE_BEFORE_RETRY = 0.5
# While refused requests are to be retried, others must not take every place as it becomes free: the
# room for each request is made smaller by chance, up to these parts of the time to its deadline and
# of the queue. Whoever comes at whatever moment then has about the same chance.
_SPARED_TIME = 0.6
_SPARED_QUEUE = 1 / 64
_LOG_SECONDS = 10.0
# Share of the rate that an engine reached in its warm-up, with nothing to decode or to answer.
_PROMISED = 0.7
_CLIENT_TEXT = 80


class Engine(Protocol):
    """What computes the images; ``ready`` has its measured rate."""

    ready: Ready | None


class Admission:
    """Counts the images in flight, and refuses requests before anything is decoded or sent.

    A request is admitted whole or not at all, whichever API it came by, and only if it can be
    answered within its deadline at the engine's measured rate: an image that is admitted and then
    dropped takes time from those that could have been answered. No client can fill the queue for
    the others (:class:`Shares`).

    Args:
        config: limits.
        metrics: where refusals are counted.
        clock_ns: CLOCK_MONOTONIC, in nanoseconds.
        chance: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        config: ServingConfig,
        metrics: ServingMetrics,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock_ns = clock_ns
        self._chance = chance
        self._decoders = config.decoders
        self._metrics = metrics
        self._shares = Shares(Load(*config.queue_limits))
        # Read when metrics are collected, not set with each request.
        metrics.inflight.set_function(lambda: self._shares.held.items)
        metrics.inflight_bytes.set_function(lambda: self._shares.held.bytes)
        metrics.inflight_decode_seconds.set_function(lambda: self._shares.held.decode_seconds)
        self._draining = False
        self._flows: WeakKeyDictionary[Engine, Flow] = WeakKeyDictionary()
        self._refused = 0
        self._logged = -_LOG_SECONDS

    @property
    def items(self) -> int:
        """Images in flight, over all models."""
        return int(self._shares.held.items)

    def drain(self) -> None:
        """Admits nothing from now on."""
        self._draining = True

    def check_room(self, request: ImageRequest, engine: Engine) -> None:
        """Refuses a request that :meth:`admit` would refuse whatever its images cost.

        Raises:
            MultigrainError: as :meth:`admit`.
        """
        self._check_room(request, _sender(request), _load(request), self._flow(engine), 0.0)

    def admit(
        self, request: ImageRequest, engine: Engine
    ) -> AbstractContextManager[Callable[[], None]]:
        """Counts a request's images as in flight, from now until the block ends.

        Returns:
            A context manager, which must be entered. It yields what to call when an image is
            answered; the others are when the block ends.

        Raises:
            MultigrainError: OVERLOADED with the seconds after which there should be room, or
                after which the client should be below its share; UNAVAILABLE when draining;
                INVALID_FIELD for more than the whole queue holds.
        """
        flow, sender = self._flow(engine), _sender(request)
        load, work = _load(request), flow.work(request)
        chance = self._chance() if flow.awaited else 0.0
        self._check_room(request, sender, load, flow, chance)
        self._check_deadline(request, sender, work, flow, chance)
        self._shares.add(sender, load)
        flow.enter(sender, work, request.deadline_ns)
        return _Admitted(self._shares, flow, sender, load, work, len(request.images))

    def too_late(self, request: ImageRequest, engine: Engine) -> MultigrainError:
        """The error of a request that was admitted and yet could not be computed in time."""
        flow = self._flow(engine)
        flow.limited()
        work = flow.work(request)
        return self._overloaded(
            request.client,
            "late",
            "throughput dropped after admission",
            flow.retry_seconds(request.client, work, _retry(flow, _MIN_RETRY_SECONDS)),
        )

    def _flow(self, engine: Engine) -> Flow:
        flow = self._flows.get(engine)
        if flow is None:
            ready = engine.ready
            rate, busy = (ready.images_per_second, ready.busy_items) if ready else (0.0, 16)
            flow = Flow(_PROMISED * rate, busy, self._clock_ns, self._decoders)
            self._flows[engine] = flow
        return flow

    def _check_room(
        self, request: ImageRequest, sender: Sender, load: Load, flow: Flow, chance: float
    ) -> None:
        if self._draining:
            self._metrics.refused("draining")
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                "the server is shutting down: send the request to another one",
                retry_after=1.0,
            )
        if load.exceeds(self._shares.limits):
            for quantity, wanted, limit in zip(
                Load._fields, load, self._shares.limits, strict=True
            ):
                # More images than this are refused earlier, or are alone in the queue.
                if wanted > limit and quantity != "items":
                    self._metrics.refused(_REASONS[quantity])
                    raise MultigrainError.field("images", _too_much(quantity, wanted, limit))
        shortage = self._shares.shortage(sender, load, chance * _SPARED_QUEUE)
        if shortage is not None:
            # By the engine's rate, the time in which as much is answered as is missing.
            part = shortage.missing / shortage.held
            seconds = part * flow.seconds_at_most(Work(0, 0.0)) or 1.0
            retry = _retry(flow, seconds)
            delay = flow.retry_seconds(request.client, flow.work(request), retry)
            reason: Refusal = "share" if shortage.over_share else _REASONS[shortage.quantity]
            who = _who(shortage, request.client)
            raise self._overloaded(request.client, reason, _why(shortage), delay, who)

    def _check_deadline(
        self, request: ImageRequest, sender: Sender, work: Work, flow: Flow, chance: float
    ) -> None:
        # An empty engine gets the images in any case: it knows best what it can do.
        if not request.deadline_ns or flow.idle:
            return
        left = _USABLE * (request.deadline_ns - self._clock_ns()) / 1e9
        left *= 1 - _SPARED_TIME * chance
        # A request of many images takes its turns between those that come after it, if any do.
        steady = flow.awaited and len(request.images) > 1
        if not steady and flow.seconds_at_most(work) <= left:
            return
        seconds = flow.seconds_before(sender, work, request.deadline_ns)
        if seconds <= left:
            return
        flow.limited()
        raise self._overloaded(
            request.client,
            "late",
            f"it would answer in {seconds:.2f} s, after the deadline",
            flow.retry_seconds(request.client, work, _retry(flow, seconds - left)),
        )

    def _overloaded(
        self,
        client: str,
        reason: Refusal,
        why: str,
        delay: float,
        who: str = "the server is full",
    ) -> MultigrainError:
        self._metrics.refused(reason)
        delay = min(delay, _MAX_RETRY_SECONDS)
        self._log_refusal(client, why)
        return MultigrainError(
            ErrorKind.OVERLOADED, f"{who} ({why}): try again in {delay:.2f} s", retry_after=delay
        )

    def _log_refusal(self, client: str, why: str) -> None:
        """Logs now and then: a line for each refusal would add to the load."""
        self._refused += 1
        now = self._clock_ns() / 1e9
        if now - self._logged >= _LOG_SECONDS:
            _log.warning(
                "overloaded", refused_requests=self._refused, reason=why, newest_client=client
            )
            self._logged, self._refused = now, 0


class _Admitted:
    """The images of one request while they are in flight.

    Not a generator: every call has one, and a generator takes twice as long.
    """

    __slots__ = ("_count", "_flow", "_left", "_load", "_sender", "_shares", "_work")

    def __init__(
        self, shares: Shares, flow: Flow, sender: Sender, load: Load, work: Work, count: int
    ) -> None:
        self._shares = shares
        self._flow = flow
        self._sender = sender
        self._load = load
        self._work = work
        self._count = self._left = count

    def __enter__(self) -> Callable[[], None]:
        return self._image_answered

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        rest = self._work
        if self._left < self._count:
            part = self._left / self._count
            rest = rest._replace(images=rest.images * part, units=rest.units * part)
        self._flow.leave(self._sender, rest, answered=kind is None)
        self._shares.remove(self._sender, self._load)

    def _image_answered(self) -> None:
        self._left -= 1
        images, units = self._work.images / self._count, self._work.units / self._count
        self._flow.answered(self._sender, images, units)


_REASONS: dict[str, Refusal] = {
    "items": "queue_full",
    "bytes": "bytes",
    "decode_seconds": "decode_cost",
    "decode_bytes": "decode_cost",
}
_NAMES = {
    "items": "images",
    "bytes": "bytes of images",
    "decode_seconds": "seconds of decoding",
    "decode_bytes": "bytes of memory for decoding",
}


def _sender(request: ImageRequest) -> Sender:
    return Sender(request.client, request.connection, request.caller)


def _load(request: ImageRequest) -> Load:
    images, costs = request.images, request.costs
    if len(images) == 1 and len(costs) == 1:
        return Load(1, len(images[0]), costs[0].seconds, costs[0].bytes)
    decode_seconds, decode_bytes = 0.0, 0
    for cost in costs:
        decode_seconds += cost.seconds
        decode_bytes += cost.bytes
    return Load(len(images), sum(map(len, images)), decode_seconds, decode_bytes)


def _retry(flow: Flow, wait: float) -> float:
    """Seconds after which a refused request has a chance, at least ``wait``."""
    done = _DONE_BEFORE_RETRY * flow.units / flow.rate if flow.rate else 0.0
    return max(wait, done, _MIN_RETRY_SECONDS)


def _too_much(quantity: str, wanted: float, limit: float) -> str:
    if quantity == "bytes":
        return (
            f"have {wanted} bytes together, more than the {limit} that the server accepts at a "
            "time: send fewer in a request"
        )
    return (
        f"need about {wanted:,.0f} {_NAMES[quantity]}, more than the {limit:,.0f} that the server "
        f"accepts at a time (serving.queue_{quantity}): send fewer in a request, or smaller ones"
    )


def _who(shortage: Shortage, client: str) -> str:
    """Who is refused."""
    if not shortage.over_share:
        return "the server is full"
    if shortage.clients == 1:
        return "the server is full for this caller"
    return f"{client[:_CLIENT_TEXT]} is above its share"


def _why(shortage: Shortage) -> str:
    """What is short."""
    name, held, limit = _NAMES[shortage.quantity], shortage.held, shortage.limit
    if not shortage.over_share:
        return f"{held:.0f} {name} are in flight, the limit is {limit:.0f}"
    if shortage.clients == 1:
        return (
            f"{held:.0f} {name} are in flight, the limit is {limit:.0f}, and the last of it is "
            "kept for other callers"
        )
    return (
        f"it has {shortage.held_by_client:.0f} {name} in flight; while {shortage.clients} clients "
        f"use the server, the share of each is {shortage.share:.0f} of {limit:.0f}"
    )
