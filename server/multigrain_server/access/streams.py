"""How many streams one client may hold open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.config import AccessConfig

_SUBSCRIPTION = "/multigrain.v1.JobService/StreamEvents"
_RETRY_SECONDS = 1.0


class ClientStreams:
    """Counts the open streams of each client; a stream lasts, and holds memory while it does.

    Args:
        config: limits.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._limits = {
            "access.max_streams_per_client": config.max_streams_per_client,
            "access.max_subscribers_per_client": config.max_subscribers_per_client,
        }
        self._open: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def enter(self, method: str, holder: str, peer: str) -> Iterator[None]:
        """Holds a place while the stream is open.

        Args:
            method: "/package.Service/Method" of a streaming call.
            holder: name of the token's holder; "" = none, and then the host is the client.
            peer: as gRPC names it, "ipv4:10.0.0.1:50123".

        Raises:
            MultigrainError: OVERLOADED, with the name of the limit.
        """
        client = holder or _host(peer)
        names = list(self._limits)[: 2 if method == _SUBSCRIPTION else 1]
        for name in names:
            if self._open[client, name] >= self._limits[name]:
                raise MultigrainError(
                    ErrorKind.OVERLOADED,
                    f"{client} has {self._open[client, name]} streams open, "
                    f"{name} allows no more: end one first",
                    retry_after=_RETRY_SECONDS,
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


def _host(peer: str) -> str:
    """Without the port, which is another for each connection."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind
