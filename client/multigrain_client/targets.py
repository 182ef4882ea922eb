"""The address of a server, checked and converted to a gRPC target before anything is sent."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from multigrain.addresses import UNIX, AddressError, HostPort, host_port, is_this_machine
from multigrain.addresses import socket_path as check_socket_path
from multigrain_client.errors import InvalidRequest

_MAX_SOCKET_PATH = 107
_URI_ZONE = re.compile(r"%25(?=[^]])")
_XDS_BOOTSTRAP = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")


@dataclass(frozen=True)
class Target:
    """Where a channel connects to.

    Attributes:
        name: the gRPC target.
        authority: host and port for the ``:authority`` header; "" = those of the target.
        hosts: those on other machines, which may be behind a proxy.
        several: whether it is a list of addresses.
    """

    name: str
    authority: str = ""
    hosts: tuple[str, ...] = ()
    several: bool = False

    @property
    def direct(self) -> bool:
        """Whether connections must not take a proxy, which gRPC would do.

        It has a proxy connect to this machine, too, unless no_proxy lists it; and of the addresses
        of a list it makes one nonsensical name.
        """
        return not self.hosts or self.several


def parse_target(text: str) -> Target:
    """Reads HOST:PORT, a list of them joined by commas, or a target with a scheme of gRPC.

    Schemes: ``dns:``, ``ipv4:``, ``ipv6:``, ``unix:``, ``unix-abstract:`` and ``xds:``.

    Raises:
        InvalidRequest: for anything else, and for a host in a list whose address is not found.
    """
    if not isinstance(text, str):
        raise InvalidRequest(
            f"target: must be text, HOST:PORT, such as '127.0.0.1:50051', and not {text!r}"
        )
    try:
        return _parse(text.strip())
    except AddressError as error:
        raise InvalidRequest(f"target: {error}") from None


def _parse(text: str) -> Target:
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    # "dns:50051" is a host named dns.
    if colon and scheme in _READERS and not rest.isdigit():
        # As gRPC reads it, even before digits: "%251" is the interface with number 1.
        return _READERS[scheme](_URI_ZONE.sub("%", rest), text)
    # All of them are checked before the first is looked up.
    addresses = [host_port(part) for part in text.split(",") if part.strip()]
    if len(addresses) > 1:
        return _list([_lookup(address) for address in addresses], str(addresses[0]))
    return _single(addresses[0] if addresses else host_port(""))


def _single(address: HostPort, prefix: str = "") -> Target:
    if not prefix and address.host.lower() in _READERS:
        prefix = "dns:///"
    # gRPC decodes percent signs, which separate the interface of an IPv6 address.
    return Target(
        prefix + str(address).replace("%", "%25"),
        str(address) if prefix else "",
        _remote([address]),
    )


def _dns(rest: str, text: str) -> Target:
    prefix = "dns:///"
    if rest.startswith("//"):
        authority, slash, rest = rest[2:].partition("/")
        if not slash:
            raise AddressError(f"{text!r} is not an address: give dns:///HOST:PORT")
        if authority:  # a name server
            if _version(host_port(authority)) is None:
                raise AddressError(
                    f"{text!r} is not an address: the name server {authority!r} is not IP:PORT"
                )
            prefix = f"dns://{authority}/"
    return _single(host_port(rest.lstrip("/")), prefix)


def _numeric(rest: str, text: str) -> Target:
    addresses = [host_port(part) for part in rest.lstrip("/").split(",") if part.strip()]
    version = int(text[len("ipv")])
    for address in addresses:
        if _version(address) != version:
            raise AddressError(f"{str(address)!r} is not an IPv{version} address and port")
    if len(addresses) > 1:
        return _list(addresses, "")
    return _single(addresses[0] if addresses else host_port(""), f"ipv{version}:")


def _unix(rest: str, text: str) -> Target:
    path = check_socket_path(UNIX + rest)
    if len(path) > _MAX_SOCKET_PATH:
        raise AddressError(
            f"{text!r} is not an address: the path of a socket has at most {_MAX_SOCKET_PATH} "
            f"characters, this one has {len(path)}"
        )
    return Target(UNIX + path)


def _abstract(rest: str, text: str) -> Target:
    if not rest:
        raise AddressError(f"{text!r} is not an address: it has no name")
    return Target(text)


def _xds(rest: str, text: str) -> Target:
    name = rest.rpartition("/")[2]
    if not name:
        raise AddressError(f"{text!r} is not an address: give xds:///NAME")
    if not any(os.environ.get(variable) for variable in _XDS_BOOTSTRAP):
        raise AddressError(
            f"{text!r} needs an xDS management server, which is not configured: set "
            f"{_XDS_BOOTSTRAP[0]} to the path of gRPC's bootstrap file, or give HOST:PORT"
        )
    return Target(text, hosts=(name,))


_READERS = {
    "dns": _dns,
    "ipv4": _numeric,
    "ipv6": _numeric,
    "unix": _unix,
    "unix-abstract": _abstract,
    "xds": _xds,
}


def _list(addresses: list[HostPort], authority: str) -> Target:
    versions = {_version(address) for address in addresses}
    if len(versions) > 1:
        raise AddressError(
            "the addresses mix IPv4 and IPv6, but gRPC balances over one family only; "
            "give addresses of one"
        )
    listed = ",".join(str(address).replace("%", "%25") for address in addresses)
    return Target(f"ipv{versions.pop()}:{listed}", authority, _remote(addresses), several=True)


def _remote(addresses: Sequence[HostPort]) -> tuple[str, ...]:
    return tuple(address.host for address in addresses if not is_this_machine(address.host))


def _version(address: HostPort) -> int | None:
    """4 or 6; None for a host name."""
    try:
        return ip_address(address.host).version
    except ValueError:
        return None


def _lookup(address: HostPort) -> HostPort:
    """The address with the host's IP address: gRPC's list targets take numeric ones only."""
    if _version(address) is not None:
        return address
    host = address.host
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidRequest(f"target: cannot find the address of {host!r}: {error}") from error
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in found:
            if entry[0] == family:
                return HostPort(str(entry[4][0]), address.port)
    raise InvalidRequest(f"target: {host!r} has neither an IPv4 nor an IPv6 address")
