"""Who could call the daemon, and its certificate."""

from __future__ import annotations

import time
from collections.abc import Iterator

from multigrain_server.access.tokens import TokenFileError, read_tokens
from multigrain_server.config import ServerConfig
from multigrain_server.doctor.finding import Finding, fail, ok, warn
from multigrain_server.grpc.tls import Certificates, TlsError

_DAY_SECONDS = 86_400
_SOON_DAYS = 14


def certificates(config: ServerConfig) -> Iterator[Finding]:
    """Whether they can be used, and for how long."""
    if not config.tls.enabled:
        return
    subject = "certificate"
    try:
        days = (Certificates(config.tls).expiry() - time.time()) / _DAY_SECONDS
    except TlsError as error:
        yield fail(subject, str(error), "give tls.certificate, tls.key and tls.client_ca as PEM")
        return
    if days <= 0:
        yield fail(subject, f"ended {-days:.0f} days ago", "renew it: no restart is needed")
    elif days < _SOON_DAYS:
        yield warn(subject, f"ends in {days:.0f} days", "renew it: no restart is needed")
    else:
        yield ok(subject, f"ends in {days:.0f} days")


def callers(config: ServerConfig) -> Iterator[Finding]:
    """The file of tokens, and what is open to a network."""
    if config.access.tokens is not None:
        try:
            tokens = read_tokens(config.access.tokens)
        except TokenFileError as error:
            yield fail("tokens", str(error), "multigrain-server --new-token makes its lines")
        else:
            yield ok("tokens", f"{len(tokens)} in the file")
    for warning in config.warnings:
        yield warn(
            f"listen {config.listen}",
            warning,
            "give tls.certificate, tls.key and access.tokens (see TLS and tokens in the README)",
        )
