"""Who a call comes from: the client that limits and shares are counted for."""

from __future__ import annotations

import ipaddress
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

_UNIX = "unix"
# A site or a machine usually has all addresses of such a network to itself.
_IPV6_PREFIX = 64


class Origin(NamedTuple):
    """Where a call comes from.

    Attributes:
        client: name of its token, or its host if there are no tokens. All local callers without
            tokens are one client: "127.0.0.1", "[::1]", or "unix" for a Unix socket.
        connection: the connection, as reported by gRPC ("ipv4:10.0.0.1:50123"). On a Unix socket
            all connections are reported alike.
    """

    client: str
    connection: str


#: The origin of the current call, set when it is authorized.
origin: ContextVar[Origin] = ContextVar("origin")


@lru_cache(maxsize=4096)
def host(peer: str) -> str:
    """The host of a connection, without the port, which differs for each connection.

    An IPv6 host is its /64 network, because one machine can use every address in it; addresses
    that are not routed on the internet stay apart.

    Args:
        peer: as reported by gRPC: "ipv4:10.0.0.1:50123", "ipv6:%5B2001:db8::1%5D:50123", "unix:".
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind or _UNIX
    text = rest.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # with a zone, for example
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.is_global:
        return f"[{ipaddress.ip_network((address, _IPV6_PREFIX), strict=False)}]"
    return f"[{address}]"
