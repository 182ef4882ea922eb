"""Checks of addresses, certificate and tokens."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator

from multigrain.files import open_to_write
from multigrain_server.access.tokens import TokenFileError, read_tokens
from multigrain_server.address import ListenAddress
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import LockHolder
from multigrain_server.doctor.finding import Finding, fail, ok, warn
from multigrain_server.grpc.tls import Certificates, TlsError

_DAY_SECONDS = 86_400
_SOON_DAYS = 14


def addresses(config: ServerConfig) -> Iterator[Finding]:
    """Whether the addresses are free, or used by the daemon on this data directory."""
    daemon = running_daemon(config)
    if daemon:
        yield ok("daemon", f"pid {daemon} uses this data directory")
    for name, text in (("listen", config.listen), ("http_listen", config.http_listen)):
        if not text:
            continue
        address = ListenAddress.parse(text)
        if address.host.startswith("unix:") or not address.port:
            continue
        reason = address.problem()
        if reason and not daemon:
            yield fail(
                f"{name} {text}",
                f"cannot listen: {reason}",
                f"stop the process that has it (ss -ltnp), or change --{name.replace('_', '-')}",
            )
        else:
            yield ok(f"{name} {text}", "in use by the daemon" if reason else "free")


def running_daemon(config: ServerConfig) -> int:
    """The pid of the daemon that uses the data directory; 0 = none, -1 = unknown."""
    try:
        fd = open_to_write(config.data_dir / "daemon.lock", os.O_RDWR)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return LockHolder.read(fd).pid or -1
    finally:
        os.close(fd)
    return 0


def certificates(config: ServerConfig) -> Iterator[Finding]:
    """Whether the certificate files can be used, and when the certificate expires."""
    if not config.tls.enabled:
        return
    subject = "certificate"
    try:
        days = (Certificates(config.tls).expiry() - time.time()) / _DAY_SECONDS
    except TlsError as error:
        yield fail(subject, str(error), "set tls.certificate, tls.key, tls.client_ca to PEM files")
        return
    if days <= 0:
        yield fail(subject, f"expired {-days:.0f} days ago", "renew it; no restart is needed")
    elif days < _SOON_DAYS:
        yield warn(subject, f"expires in {days:.0f} days", "renew it; no restart is needed")
    else:
        yield ok(subject, f"expires in {days:.0f} days")
    if config.tls.key is not None and config.tls.key.stat().st_mode & stat.S_IROTH:
        yield warn("key", f"other users can read {config.tls.key}", f"chmod o-rwx {config.tls.key}")


def callers(config: ServerConfig) -> Iterator[Finding]:
    """The token file, and addresses that are open to a network."""
    if config.access.tokens is not None:
        try:
            tokens = read_tokens(config.access.tokens)
        except TokenFileError as error:
            yield fail("tokens", str(error), "create its lines with multigrain-server --new-token")
        else:
            yield ok("tokens", f"{len(tokens)} in the file")
            if config.access.tokens.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                yield warn(
                    "tokens",
                    f"other users can add tokens to {config.access.tokens}",
                    f"chmod go-w {config.access.tokens}",
                )
    for warning in config.warnings:
        yield warn(
            f"listen {config.listen}",
            warning,
            "set tls.certificate, tls.key, tls.http and access.tokens "
            "(see docs/how-to/tls-and-tokens.md)",
        )
