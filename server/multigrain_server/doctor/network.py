"""Addresses that the daemon would listen on."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator

from multigrain_server.access.tokens import TokenFileError, read_tokens
from multigrain_server.address import ListenAddress
from multigrain_server.config import ServerConfig
from multigrain_server.doctor.finding import Finding, fail, ok, warn
from multigrain_server.grpc.tls import Certificates, TlsError


def addresses(config: ServerConfig) -> Iterator[Finding]:
    """Whether they are free, unless our own daemon holds them, and who can reach them."""
    holder = running_daemon(config)
    if holder:
        yield ok("daemon", f"pid {holder} runs on this data directory")
    for name, text in (("listen", config.listen), ("http_listen", config.http_listen)):
        if not text:
            continue
        address = ListenAddress.parse(text)
        if address.host.startswith("unix:") or not address.port:
            continue
        reason = address.problem()
        if reason and not holder:
            yield fail(
                f"{name} {text}",
                f"cannot be listened on: {reason}",
                f"end what holds it (ss -ltnp), or give --{name.replace('_', '-')}",
            )
        else:
            yield ok(f"{name} {text}", "in use by the daemon" if reason else "free")


def running_daemon(config: ServerConfig) -> int:
    """Pid of the daemon that holds the data directory; 0 if none does."""
    try:
        fd = os.open(config.data_dir / "daemon.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdecimal() else -1
    finally:
        os.close(fd)
    return 0


# MERGED: Who could call the daemon, and its certificate.


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
            "give tls.certificate, tls.key and access.tokens (see docs/how-to/tls-and-tokens.md)",
        )
