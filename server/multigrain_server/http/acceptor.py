"""Accepts HTTP connections within limits, from the first moment on.

asyncio's own server counts a TLS connection only after its handshake, and accepts without limit.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from socket import SHUT_RDWR, socket

import structlog

from multigrain_server.access.client import host

_log = structlog.get_logger(__name__)

_ACCEPT_AT_A_TIME = 8
_BACKLOG = 1024
# Without descriptors, accepting fails until one is closed.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the HTTP address.

    Attributes:
        total: connections.
        per_host: connections of one host.
        request_seconds: for the TLS handshake, and then for the headers of the request.
    """

    total: int = 512
    per_host: int = 256
    request_seconds: float = 2.0


@dataclass(eq=False)
class Place:
    """A connection that was accepted.

    Attributes:
        sock: its socket.
        host: of its client.
        has_request: whether its request has arrived.
    """

    sock: socket
    host: str
    has_request: bool = False
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def requested(self) -> None:
        """Records that the request has arrived: from now on the connection is not displaced."""
        self.has_request = True
        if self.timer is not None:
            self.timer.cancel()

    def end(self) -> None:
        """Ends the connection, in its handshake or later; asyncio closes the socket then."""
        with suppress(OSError):
            self.sock.shutdown(SHUT_RDWR)


class Acceptor:
    """Accepts connections. If there are too many, the oldest one without a request makes room.

    Args:
        make: makes the protocol of a connection, which calls ``leave`` when it is lost.
        tls: makes the context of a connection; None = plain HTTP.
        limits: how many, and how long they may take.
    """

    def __init__(
        self,
        make: Callable[[Place], asyncio.Protocol],
        tls: Callable[[], ssl.SSLContext] | None,
        limits: ConnectionLimits,
    ) -> None:
        self._make = make
        self._tls = tls
        self._limits = limits
        self._sockets: list[socket] = []
        # In the order in which they were accepted.
        self._places: dict[Place, None] = {}
        self._hosts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._places)

    def start(self, sockets: Sequence[socket]) -> None:
        """Accepts from sockets that are bound."""
        for sock in sockets:
            sock.setblocking(False)
            sock.listen(_BACKLOG)
            self._sockets.append(sock)
            self._listen(sock)

    def stop(self) -> None:
        """Stops accepting, and closes the sockets."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        for place in list(self._places):
            if not place.has_request:
                place.end()

    def leave(self, place: Place) -> None:
        """Removes a connection that is lost."""
        if place not in self._places:
            return
        del self._places[place]
        self._hosts[place.host] -= 1
        if not self._hosts[place.host]:
            del self._hosts[place.host]
        if place.timer is not None:
            place.timer.cancel()

    def _listen(self, sock: socket) -> None:
        if sock.fileno() >= 0:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, sock: socket) -> None:
        # Few at a time: those that were accepted are served in between.
        for _ in range(_ACCEPT_AT_A_TIME):
            try:
                connection, address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("cannot accept an HTTP connection", reason=str(error))
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock.fileno())
                loop.call_later(_PAUSE_SECONDS, self._listen, sock)
                return
            connection.setblocking(False)
            self._enter(connection, _host(address))

    def _enter(self, sock: socket, name: str) -> None:
        limits = self._limits
        if self._hosts[name] >= limits.per_host:
            has_room = self._displace(name)
        else:
            has_room = len(self._places) < limits.total or self._displace("")
        if not has_room:
            sock.close()
            return
        place = Place(sock, name)
        self._places[place] = None
        self._hosts[name] += 1
        loop = asyncio.get_running_loop()
        place.timer = loop.call_later(limits.request_seconds, place.end)
        place.task = loop.create_task(self._connect(place))

    def _displace(self, name: str) -> bool:
        """Ends the oldest connection without a request; of a host, or of the one with most."""
        waiting = [place for place in self._places if not place.has_request]
        if name:
            waiting = [place for place in waiting if place.host == name]
        if not waiting:
            return False
        most = max(self._hosts[place.host] for place in waiting)
        place = next(place for place in waiting if self._hosts[place.host] == most)
        self.leave(place)
        place.end()
        return True

    async def _connect(self, place: Place) -> None:
        loop = asyncio.get_running_loop()
        connected = False
        try:
            await loop.connect_accepted_socket(
                lambda: self._make(place),
                place.sock,
                ssl=self._tls() if self._tls is not None else None,
                ssl_handshake_timeout=self._limits.request_seconds if self._tls else None,
            )
            connected = True
            if place.timer is not None and self._tls is not None and not place.has_request:
                # The handshake had its time; now the request has.
                place.timer.cancel()
                place.timer = loop.call_later(self._limits.request_seconds, place.end)
        except OSError:  # it is not TLS, takes too long or was reset
            pass
        finally:
            if not connected:
                self.leave(place)
                place.end()


def _host(address: object) -> str:
    if not isinstance(address, tuple):
        return "unix"
    text, port = address[0], address[1]
    return host(f"ipv6:[{text}]:{port}" if ":" in text else f"ipv4:{text}:{port}")
