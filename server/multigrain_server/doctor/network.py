"""Addresses that the daemon would listen on."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import closing

from multigrain_server.address import ListenAddress
from multigrain_server.config import ServerConfig
from multigrain_server.doctor.finding import Finding, fail, ok


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
        reason = _refused(address)
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


def _refused(address: ListenAddress) -> str:
    """Why an address cannot be bound; empty if it can."""
    try:
        ((family, kind, _, _, where), *_) = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with closing(socket.socket(family, kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        return error.strerror or str(error)
    return ""
