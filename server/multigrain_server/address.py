"""Addresses to listen on."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from multigrain.storage import remedy

_ADVICE = {
    errno.EADDRINUSE: "stop what listens there, or choose another",
    errno.EADDRNOTAVAIL: "choose an address of this machine",
    errno.EACCES: "choose a port from 1024 on",
}
_UNIX = "unix:"


@dataclass(frozen=True)
class ListenAddress:
    """Host and port, or a Unix socket (``unix:/path``; host is then the whole text, port 0)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Reads "host:port", "[ipv6]:port" or "unix:/path".

        Raises:
            ValueError: with how to write it.
        """
        if text.startswith(_UNIX):
            return cls(text, 0)
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(
                f'"{text}" is not an address; write "127.0.0.1:50051", "[::1]:50051" '
                'or "unix:/path" (port 0: any free one)'
            )
        if ":" in bare and not host.startswith("["):
            raise ValueError(f'"{text}": an IPv6 address needs brackets, "[::1]:50051"')
        return cls(bare, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self._is_unix or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def trouble(self) -> str:
        """Why nobody can listen here, found by trying it, and what to do; "" if anybody can."""
        try:
            if self._is_unix:
                _try_path(Path(self.host.removeprefix(_UNIX)))
            else:
                found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
                for family, kind, protocol, _name, address in found:
                    with socket.socket(family, kind, protocol) as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind(address)
        except OSError as error:
            return self.explain(error)
        return ""

    def explain(self, error: OSError) -> str:
        """The reason of a failed attempt to listen here, and what to do."""
        # Python itself refuses a path of a socket that is too long: without a number.
        reason = os.strerror(error.errno) if error.errno in _ADVICE else str(error)
        advice = _ADVICE.get(error.errno or 0, "choose another")
        if self._is_unix:
            advice = remedy(error, f"write in {Path(self.host.removeprefix(_UNIX)).parent}", advice)
        return f"{reason}; {advice}"

    @property
    def _is_unix(self) -> bool:
        return self.host.startswith(_UNIX)

    def with_port(self, port: int) -> ListenAddress:
        return ListenAddress(self.host, port)

    def __str__(self) -> str:
        if self._is_unix:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _try_path(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.bind(str(path))
    path.unlink()
