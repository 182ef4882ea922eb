"""Connection settings: address, load balancing, keepalive, TLS, token, trace context."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import grpc

from multigrain_client.errors import InvalidRequest

ChannelOption = tuple[str, str | int]
MIB = 1024 * 1024


@dataclass(frozen=True)
class Tls:
    """TLS settings, with an optional client certificate (mTLS).

    Attributes:
        ca: certificate authorities to trust (PEM, as a path or bytes); None = the system's.
        certificate: the client's certificate chain (PEM); needs ``key``.
        key: its private key (PEM).
        server_name: host name in the server's certificate, if it differs from the address.
    """

    ca: str | Path | bytes | None = None
    certificate: str | Path | bytes | None = None
    key: str | Path | bytes | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """The gRPC channel credentials.

        Raises:
            InvalidRequest: if a file cannot be read, or only one of certificate and key is given.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("tls: certificate and key must be given together")
        return grpc.ssl_channel_credentials(
            _pem(self.ca, "ca"), _pem(self.key, "key"), _pem(self.certificate, "certificate")
        )


@dataclass(frozen=True)
class ChannelConfig:
    """Arguments of a gRPC channel, for ``grpc`` and ``grpc.aio``."""

    target: str
    shown_target: str
    options: tuple[ChannelOption, ...]
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...] = field(repr=False, default=())

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of one call: the token and the current trace context."""
        return (*self.metadata, *trace_context())


def trace_context() -> tuple[tuple[str, str], ...]:
    """Metadata of the current OpenTelemetry context (W3C ``traceparent``, ``tracestate`` and
    ``baggage``, whichever propagators the program has configured).

    Empty, and without importing OpenTelemetry, in a program that does not use it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())


def channel_config(
    target: str,
    *,
    token: str | None = None,
    tls: Tls | bool | None = None,
    keepalive: float = 60.0,
    options: Mapping[str, str | int] | None = None,
) -> ChannelConfig:
    """The channel settings for the arguments of a client.

    Args:
        target: "host:port", "host1:port1,host2:port2" (round-robin), or any gRPC
            target ("dns:///name:port", "unix:/path").
        token: sent with every call as ``authorization: Bearer <token>``. Without TLS it is
            readable on the network.
        tls: True for TLS with the system's certificate authorities, or a ``Tls``; None = plain
            TCP.
        keepalive: seconds between pings on a connection with calls in flight; 0 = no pings.
        options: gRPC channel options that override the defaults here.

    Raises:
        InvalidRequest: for an invalid target.
    """
    resolved, authority = _resolve(target)
    chosen: dict[str, str | int] = {
        "grpc.service_config": json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}),
        # A response with 64 vectors can exceed gRPC's default of 4 MiB.
        "grpc.max_receive_message_length": 64 * MIB,
        # Reconnect to a restarted server within seconds; gRPC's default is up to two minutes.
        "grpc.initial_reconnect_backoff_ms": 200,
        "grpc.max_reconnect_backoff_ms": 5_000,
    }
    if keepalive > 0:
        chosen |= {
            "grpc.keepalive_time_ms": int(keepalive * 1000),
            "grpc.keepalive_timeout_ms": 20_000,
            # The client of an event stream sends nothing for hours: ping all the same.
            "grpc.http2.max_pings_without_data": 0,
        }
    if authority:
        chosen["grpc.default_authority"] = authority
    settings = Tls() if tls is True else tls or None
    if settings is not None and settings.server_name:
        chosen["grpc.ssl_target_name_override"] = settings.server_name
        chosen["grpc.default_authority"] = settings.server_name
    chosen |= options or {}
    return ChannelConfig(
        target=resolved,
        shown_target=target,
        options=tuple(chosen.items()),
        credentials=settings.credentials() if settings is not None else None,
        metadata=(("authorization", f"Bearer {token}"),) if token else (),
    )


def _resolve(target: str) -> tuple[str, str]:
    """The gRPC target, and the authority if it differs from the target."""
    addresses = [part.strip() for part in target.split(",") if part.strip()]
    if not addresses:
        raise InvalidRequest("target: empty; give HOST:PORT, such as 127.0.0.1:50051")
    for address in addresses:
        scheme, slashes, rest = address.partition("://")
        if slashes and scheme.lower() in ("http", "https", "grpc", "grpcs"):
            raise InvalidRequest(
                f"target: {address!r} is a URL; give HOST:PORT, such as {rest.rstrip('/')!r}, and "
                "tls for TLS"
            )
    if len(addresses) == 1:
        return addresses[0], ""
    families: dict[int, list[str]] = {}
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit() or not host:
            raise InvalidRequest(
                f"target: {address!r} is not HOST:PORT; separate several addresses by "
                "commas: HOST:PORT,HOST:PORT"
            )
        version, ip = _lookup(host.strip("[]"), int(port))
        families.setdefault(version, []).append(
            f"[{ip}]:{port}" if version == 6 else f"{ip}:{port}"
        )
    if len(families) > 1:
        raise InvalidRequest(
            "target: the addresses mix IPv4 and IPv6, but gRPC balances over one family only"
        )
    ((version, found),) = families.items()
    return f"ipv{version}:{','.join(found)}", addresses[0]


def _lookup(host: str, port: int) -> tuple[int, str]:
    """The IP version and address of a host: gRPC's list targets take numeric addresses only."""
    try:
        return ip_address(host).version, host
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidRequest(f"target: cannot find the address of {host!r}: {error}") from error
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        for entry in found:
            if entry[0] == family:
                return version, str(entry[4][0])
    raise InvalidRequest(f"target: {host!r} has neither an IPv4 nor an IPv6 address")


def _pem(source: str | Path | bytes | None, name: str) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"tls: cannot read the {name} file {source}: {error.strerror}"
        ) from error
