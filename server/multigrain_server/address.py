"""Addresses to listen on."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multigrain.addresses import UNIX, HostPort, host_port, is_loopback, socket_path
from multigrain.storage import os_error_hint

_ADVICE = {
    errno.EADDRINUSE: "stop the process that listens there, or choose another",
    errno.EADDRNOTAVAIL: "choose an address of this machine",
    errno.EACCES: "choose a port from 1024 on",
}


@dataclass(frozen=True)
class ListenAddress:
    """Host and port, or a Unix socket (``unix:/path``; host is then the whole text, port 0)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Reads "host:port", "[ipv6]:port" or "unix:/path".

        Raises:
            AddressError: with how to write it.
        """
        text = text.strip()
        if text.startswith(UNIX):
            return cls(UNIX + socket_path(text), 0)
        address = host_port(text, any_free_port=True)
        return cls(address.host, address.port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self._is_unix or is_loopback(self.host)

    def bind(self) -> list[socket.socket]:
        """Sockets bound to every address of the host, which do not listen yet.

        Raises:
            OSError: if one of them cannot be bound.
        """
        if self._is_unix:
            path = self.host.removeprefix(UNIX)
            return [_bound(socket.AF_UNIX, socket.SOCK_STREAM, 0, path)]
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        sockets: list[socket.socket] = []
        try:
            for family, kind, protocol, _name, address in found:
                sockets.append(_bound(family, kind, protocol, address))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    def problem(self) -> str:
        """Why nobody can listen here, found by trying, and what to do; "" if it works."""
        try:
            for sock in self.bind():
                sock.close()
        except OSError as error:
            return self.explain(error)
        if self._is_unix:
            Path(self.host.removeprefix(UNIX)).unlink()
        return ""

    def explain(self, error: OSError) -> str:
        """The reason of a failed attempt to listen here, and what to do."""
        # Python itself refuses a path of a socket that is too long: without a number.
        reason = os.strerror(error.errno) if error.errno in _ADVICE else str(error)
        advice = _ADVICE.get(error.errno or 0, "choose another")
        if self._is_unix:
            advice = os_error_hint(
                error, f"write in {Path(self.host.removeprefix(UNIX)).parent}", advice
            )
        return f"{reason}; {advice}"

    @property
    def _is_unix(self) -> bool:
        return self.host.startswith(UNIX)

    def with_port(self, port: int) -> ListenAddress:
        return ListenAddress(self.host, port)

    def __str__(self) -> str:
        if self._is_unix:
            return self.host
        return str(HostPort(self.host, self.port))


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
