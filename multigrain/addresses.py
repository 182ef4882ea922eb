"""Network addresses as people write them: HOST:PORT, [IPV6]:PORT and unix:PATH.

The daemon and the client check addresses here, before they use the network: gRPC itself takes a
port modulo 65536 ("70000" is 4464, "-1" is 65535), reads "http" as 80 and no port as 443. Needs the
standard library only, so that the client can use it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

DEFAULT_PORT = 50051
UNIX = "unix:"

_HOST = re.compile(r"[A-Za-z0-9._-]+")
_ZONE = re.compile(r"%[A-Za-z0-9._-]+")
# The same in a URI (RFC 6874). Digits may be the number of an interface, such as 254 or 25.
_URI_ZONE = re.compile(r"%25(?!\d*\])")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# What a URI may have in a path, without the comma, which separates addresses.
_SOCKET_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+;=:@/-]+")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
# Where the mappings of the two versions of IDNA differ.
_AMBIGUOUS_LETTERS = frozenset("ßς\u200c\u200d")
_MAX_NAME, _MAX_LABEL = 253, 63


class AddressError(ValueError):
    """The text is not an address; the message says why and how to write it."""


@dataclass(frozen=True)
class HostPort:
    """A host name or IP address, without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_port(text: str, *, any_free_port: bool = False) -> HostPort:
    """Reads "host:port" or "[ipv6]:port"; spaces around it are ignored.

    The zone of an IPv6 address follows "%" or, as in a URI, "%25".

    Args:
        text: the address.
        any_free_port: accept port 0, which stands for any free port.

    Raises:
        AddressError: with how to write it. It never repeats a user name or password.
    """
    text = text.strip()
    if not text:
        raise AddressError(f"empty; give HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    shown = text.rpartition("@")[2]
    url = _SCHEME.fullmatch(text)
    if url is not None:
        rest = re.split(r"[/?#]", url[2])[0].rpartition("@")[2]
        scheme = url[1].lower()
        if scheme in ("http", "https", "grpc", "grpcs"):
            raise AddressError(
                f"{scheme + '://' + rest!r} is a URL; give HOST:PORT, such as "
                f"{_suggestion(rest)!r}, and tls for TLS"
            )
        raise AddressError(f"{scheme}:// is not a kind of address; {_give(rest)}")
    if "@" in text:
        raise AddressError(
            f"{shown!r} has a user name in front; give HOST:PORT without it (a token is an "
            "option of its own)"
        )
    host, port = _split(text)
    _check_host(host, text)
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65_535:
        raise _wrong(text, f"the port {port!r} is not a number from 1 to 65535", _with_port(host))
    if int(port) == 0 and not any_free_port:
        raise _wrong(text, "port 0 lets a server choose a port", "give the port it has chosen")
    return HostPort(host, int(port))


def socket_path(text: str) -> str:
    """The path of a Unix socket in "unix:path" or "unix:///path".

    Raises:
        AddressError: with how to write it.
    """
    path = text.partition(":")[2]
    if path.startswith("//"):
        if not path.startswith("///"):
            raise AddressError(
                f"{text!r} is not an address: give unix:PATH, or unix:///PATH for an absolute path"
            )
        path = path.removeprefix("//")
    if not path:
        raise AddressError(f"{text!r} is not an address: it has no path; give unix:PATH")
    for character in path:
        if not _SOCKET_PATH.fullmatch(character):
            raise AddressError(
                f"{text!r} is not an address: the path of a socket cannot have {character!r}"
            )
    return path


def is_loopback(host: str) -> bool:
    """Whether a host, without brackets, is "localhost" or an IP address of this machine only."""
    address = _ip(host)
    if address is None:
        return host.lower() == "localhost"
    return address.is_loopback


def is_this_machine(host: str) -> bool:
    """Whether connections to a host stay on this machine.

    Those to names below localhost (RFC 6761) and to 0.0.0.0 or :: do, too.
    """
    address = _ip(host)
    if address is None:
        return f".{host.lower().removesuffix('.')}".endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _split(text: str) -> tuple[str, str]:
    """Host, without brackets, and port."""
    if text.startswith("["):
        host, bracket, rest = _URI_ZONE.sub("%", text[1:]).partition("]")
        if not bracket:
            raise _wrong(text, "the bracket is not closed", _give(""))
        colon, port = rest[:1], rest[1:]
        if rest and colon != ":":
            raise _wrong(text, f"{rest!r} after the bracket is not a port", _with_port(host))
        if not _is_ipv6(host):
            raise _wrong(text, f"{host!r} is not an IPv6 address", "give [IPV6]:PORT")
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            host, port = text, ""
        if ":" in host:
            if _is_ipv6(text) and _is_ipv6(host) and port.isdigit() and int(port):
                raise _wrong(
                    text,
                    f"an IPv6 address needs brackets: {port} may be the port or its end",
                    f"give {str(HostPort(host, int(port)))!r}, or "
                    f"{str(HostPort(text, DEFAULT_PORT))!r}",
                )
            whole = text if _is_ipv6(text) else host
            if _is_ipv6(whole):
                raise _wrong(text, "an IPv6 address needs brackets", _with_port(whole))
            raise _wrong(text, "it has more than one colon", _give(""))
    if colon and "/" in port:
        raise _wrong(text, "nothing may follow the port", _give(f"{host}:{port.split('/')[0]}"))
    if not colon or not port:
        raise _wrong(text, "it has no port", _with_port(host))
    if not host:
        raise _wrong(text, "it has no host", _give(""))
    return host, port


def _check_host(host: str, text: str) -> None:
    if _is_ipv6(host) or _ip(host) is not None:
        return
    if not host.isascii():
        raise _wrong(text, "a host name has ASCII letters only", _ascii_form(host))
    for character in host:
        if not _HOST.fullmatch(character):
            raise _wrong(text, f"a host name cannot have {character!r}", _give(""))
    name = host.removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        raise _wrong(text, f"{host!r} is not an IPv4 address", _give(""))
    if not all(labels):
        raise _wrong(text, "a part of the host name is empty", _give(""))
    if len(name) > _MAX_NAME or max(map(len, labels)) > _MAX_LABEL:
        raise _wrong(
            text,
            f"a host name has at most {_MAX_NAME} characters, and {_MAX_LABEL} between dots",
            _give(""),
        )


def _is_ipv6(host: str) -> bool:
    bare, percent, zone = host.partition("%")
    try:
        ipaddress.IPv6Address(bare)
    except ValueError:
        return False
    return not percent or _ZONE.fullmatch(percent + zone) is not None


def _ascii_form(host: str) -> str:
    """How to write a name with other letters, where there is only one way."""
    if not _AMBIGUOUS_LETTERS.intersection(host.lower()):
        try:
            return f"give its ASCII form, {host.encode('idna').decode()!r}"
        except UnicodeError:
            pass
    return "give its ASCII form (xn--...)"


def _suggestion(rest: str) -> str:
    """What was probably meant, for an error; it never fails."""
    if rest.isascii() and rest.isdigit():  # a port alone
        rest = f"127.0.0.1:{rest}"
    host, colon, port = rest.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and len(port) <= 5):
        host, port = rest, str(DEFAULT_PORT)
    bare = host.removeprefix("[").removesuffix("]")
    if not (_is_ipv6(bare) or _HOST.fullmatch(bare)) or int(port) not in range(1, 65_536):
        bare, port = "127.0.0.1", str(DEFAULT_PORT)
    return str(HostPort(bare, int(port)))


def _give(rest: str) -> str:
    return f"give HOST:PORT, such as {_suggestion(rest)!r}"


def _with_port(host: str) -> str:
    return _give(f"[{host}]" if ":" in host else host)


def _wrong(text: str, why: str, todo: str) -> AddressError:
    shown = text if len(text) <= 300 else f"{text[:300]}..."
    return AddressError(f"{shown!r} is not an address: {why}; {todo}")
