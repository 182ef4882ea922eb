"""Which names a browser may have for the daemon, where no token and no certificate protects it.

A page in a browser may point its own name at any address (DNS rebinding), and its scripts may then
read what is served there. The browser sends that name as the Host of the request.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable

# Nobody can register a public name below these.
_PRIVATE = (".localhost", ".local", ".internal", ".home.arpa", ".svc", ".cluster.local")


class HostCheck:
    """Accepts addresses, names that are not public, this machine's own and those configured.

    Args:
        names: further names.
        own_name: this machine's full name. It may ask a DNS server that does not answer for many
            seconds, so it is called in a thread, and the name is accepted once it is known.
    """

    def __init__(self, names: Iterable[str], own_name: Callable[[], str] = socket.getfqdn) -> None:
        self._names = {_plain(name) for name in (socket.gethostname(), *names)}
        threading.Thread(
            target=lambda: self._names.add(_plain(own_name())), name="own-name", daemon=True
        ).start()

    def allows(self, header: str | None) -> bool:
        """Whether a request with this Host header is answered; None = it has none."""
        if not header:
            return True  # browsers send one
        name = _plain(_without_port(header.strip()))
        return "." not in name or name in self._names or name.endswith(_PRIVATE) or _literal(name)


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
