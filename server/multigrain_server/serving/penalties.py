"""Clients whose images did harm: for some time, theirs are decoded after everybody else's."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from multigrain_server.models.metrics import ServingMetrics

_log = structlog.get_logger(__name__)

_FIRST_SECONDS = 30.0
_LONGEST_SECONDS = 600.0
# A client that did no harm for so long after its penalty starts again with a short one.
_FORGIVEN_SECONDS = 600.0
_CLIENTS = 1024
_LOG_SECONDS = 10.0


@dataclass(slots=True)
class _Penalty:
    """Until when, on the clock, and how long it was."""

    until: float
    seconds: float


class Penalties:
    """Who sent an image whose decoding exceeded its budget or crashed.

    For a time that doubles from 30 seconds up to 10 minutes, the client's images are decoded in the
    lane of slow images, where they hold up nobody. They are not refused.

    Args:
        metrics: where penalties are counted.
        clock: in seconds.
    """

    def __init__(
        self, metrics: ServingMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._clients: OrderedDict[str, _Penalty] = OrderedDict()
        self._logged = -_LOG_SECONDS
        self._unlogged = 0

    def penalize(self, client: str) -> None:
        """Starts a penalty, or a longer one.

        Images in flight together count once: while a penalty has run for less than a tenth of its
        time, it is not made longer.

        Args:
            client: whose image did harm.
        """
        now = self._clock()
        last = self._clients.pop(client, None)
        if last is None or now >= last.until + _FORGIVEN_SECONDS:
            penalty = _Penalty(now + _FIRST_SECONDS, _FIRST_SECONDS)
        elif last.until - now > 0.9 * last.seconds:
            penalty = last
        else:
            seconds = min(2 * last.seconds, _LONGEST_SECONDS)
            penalty = _Penalty(now + seconds, seconds)
        self._clients[client] = penalty
        while len(self._clients) > _CLIENTS:
            self._clients.popitem(last=False)
        if penalty is not last:
            self._metrics.penalties.inc()
            self._log(client, penalty.seconds, now)

    def active(self, client: str) -> bool:
        """Whether a client has a penalty now."""
        penalty = self._clients.get(client)
        return penalty is not None and self._clock() < penalty.until

    def _log(self, client: str, seconds: float, now: float) -> None:
        if now - self._logged < _LOG_SECONDS:
            self._unlogged += 1
            return
        _log.warning(
            "client penalized: its image took too long to decode or crashed the decoder",
            client=client,
            seconds=seconds,
            others_since_last_line=self._unlogged,
        )
        self._logged, self._unlogged = now, 0
