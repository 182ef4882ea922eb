"""Addresses to listen on."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


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
        if text.startswith("unix:"):
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
        if self.host.startswith("unix:") or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> ListenAddress:
        return ListenAddress(self.host, port)

    def __str__(self) -> str:
        if self.host.startswith("unix:"):
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
