"""Connection settings: address, load balancing, keepalive, TLS, token, trace context."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from multigrain_client.errors import InvalidRequest
from multigrain_client.proxy import ENABLE_OPTION, PROXY_OPTION, Proxy, find_proxy
from multigrain_client.retry import check_timeout
from multigrain_client.targets import parse_target

ChannelOption = tuple[str, str | int]
MIB = 1024 * 1024
_MAX_INT = 2**31 - 1


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
    proxy: Proxy | None
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
        target: see ``targets.parse_target``.
        token: sent with every call as ``authorization: Bearer <token>``. Newlines at its end,
            as in a token file, are dropped. Without TLS it is readable on the network.
        tls: True for TLS with the system's certificate authorities, or a ``Tls``; None = plain
            TCP.
        keepalive: seconds between pings on a connection with calls in flight; 0 = no pings.
        options: gRPC channel options that override the defaults here.

    Raises:
        InvalidRequest: for an invalid target, token or keepalive.
    """
    parsed = parse_target(target)
    if keepalive != 0:
        check_timeout(keepalive, "keepalive")
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
            "grpc.keepalive_time_ms": min(int(keepalive * 1000), _MAX_INT),
            "grpc.keepalive_timeout_ms": 20_000,
            # The client of an event stream sends nothing for hours: ping all the same.
            "grpc.http2.max_pings_without_data": 0,
        }
    if parsed.authority:
        chosen["grpc.default_authority"] = parsed.authority
    given = options or {}
    if parsed.direct and PROXY_OPTION not in given:
        chosen[ENABLE_OPTION] = 0
    settings = Tls() if tls is True else tls or None
    if settings is not None and settings.server_name:
        chosen["grpc.ssl_target_name_override"] = settings.server_name
        chosen["grpc.default_authority"] = settings.server_name
    chosen |= given
    return ChannelConfig(
        target=parsed.name,
        shown_target=target.strip(),
        proxy=find_proxy(parsed, os.environ, given),
        options=tuple(chosen.items()),
        credentials=settings.credentials() if settings is not None else None,
        metadata=(("authorization", f"Bearer {_checked(token)}"),) if token else (),
    )


def _checked(token: str) -> str:
    """The token as a header holds it. The error does not show it.

    Raises:
        InvalidRequest: if a header cannot hold it.
    """
    if not isinstance(token, str):
        raise InvalidRequest(f"token: must be text, not {type(token).__name__}")
    token = token.rstrip("\r\n")
    if not token:
        raise InvalidRequest("token: it has no character but newlines")
    wrong = [at for at, one in enumerate(token, 1) if not (one.isascii() and one.isprintable())]
    if wrong:
        raise InvalidRequest(
            f"token: character {wrong[0]} of {len(token)} is not printable ASCII, which is all "
            "that a header can hold"
        )
    if token != token.strip():
        raise InvalidRequest("token: it begins or ends with a space")
    return token


def _pem(source: str | Path | bytes | None, name: str) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"tls: cannot read the {name} file {source}: {error.strerror}"
        ) from error
