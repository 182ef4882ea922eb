"""Limits per token on calls, and per client on open streams."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.client import host
from multigrain_server.access.config import AccessConfig
from multigrain_server.access.tokens import TokenEntry
from multigrain_server.service_names import STREAM_EVENTS

# Time in which another call of the token is likely to end.
_RETRY_SECONDS = 0.1
_STREAMS_RETRY_SECONDS = 1.0


class TokenLimits:
    """The calls of one token: a token bucket of one second for their rate, and a count.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._filled = clock()
        # Full; its size is in the entry.
        self._level = float("inf")
        self._running = 0

    @contextmanager
    def enter(self, entry: TokenEntry) -> Iterator[None]:
        """Counts a call while it runs.

        Raises:
            MultigrainError: OVERLOADED, with the seconds after which to retry.
        """
        maximum = entry.concurrent_calls
        if maximum is not None and self._running >= maximum:
            raise MultigrainError(
                ErrorKind.OVERLOADED,
                f"{entry.name} has {self._running} calls in flight, its token allows {maximum}; "
                "wait for one to end",
                retry_after=_RETRY_SECONDS,
            )
        if entry.calls_per_second is not None:
            self._take(entry.name, entry.calls_per_second)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _take(self, name: str, rate: float) -> None:
        now = self._clock()
        self._level = min(max(1.0, rate), self._level + (now - self._filled) * rate)
        self._filled = now
        if self._level < 1:
            delay = (1 - self._level) / rate
            raise MultigrainError(
                ErrorKind.OVERLOADED,
                f"the token of {name} allows {rate:g} calls per second; retry in {delay:.2f} s",
                retry_after=delay,
            )
        self._level -= 1


class ClientStreams:
    """Counts the open streams of each client, which take memory as long as they are open.

    Args:
        config: the limits.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._limits = {
            "access.max_streams_per_client": config.max_streams_per_client,
            "access.max_subscribers_per_client": config.max_subscribers_per_client,
        }
        self._open: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def enter(self, method: str, token_name: str, peer: str) -> Iterator[None]:
        """Counts a stream while it is open.

        Args:
            method: "/package.Service/Method" of a streaming call.
            token_name: name of the token; "" = no token, so that the host is the client.
            peer: as reported by gRPC, "ipv4:10.0.0.1:50123".

        Raises:
            MultigrainError: OVERLOADED, naming the limit.
        """
        client = token_name or host(peer)
        names = list(self._limits)[: 2 if method == STREAM_EVENTS else 1]
        for name in names:
            if self._open[client, name] >= self._limits[name]:
                raise MultigrainError(
                    ErrorKind.OVERLOADED,
                    f"{client} has {self._open[client, name]} streams open, "
                    f"{name} allows no more; end one first",
                    retry_after=_STREAMS_RETRY_SECONDS,
                )
        keys = [(client, name) for name in names]
        self._open.update(keys)
        try:
            yield
        finally:
            for key in keys:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]
