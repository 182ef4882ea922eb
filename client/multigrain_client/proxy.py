"""The HTTP proxy that gRPC takes to a server, so that errors can name it.

gRPC reads the environment itself (https://grpc.github.io/grpc/core/md_doc_environment_variables.html)
and says nothing of it in its errors; this module finds out what it does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from multigrain_client.targets import Target

# In this order; the first that is set counts, even if it is empty. Lowercase only.
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")

ENABLE_OPTION = "grpc.enable_http_proxy"
PROXY_OPTION = "grpc.http_proxy"


@dataclass(frozen=True)
class Proxy:
    """A proxy in the environment or the channel's options.

    Attributes:
        host: of the server.
        url: its scheme, host and port, never a user name or password; "" = unreadable.
        origin: the variable or option that names it.
        exceptions: the variable that lists hosts which are reached directly.
        unused: why it is not used; "" = it is.
    """

    host: str
    url: str
    origin: str
    exceptions: str
    unused: str = ""

    @property
    def route(self) -> str:
        """The words of an error after the server's address."""
        return "" if self.unused else f" through the proxy {self.url} ({self.origin})"

    @property
    def advice(self) -> str:
        """What to check first when the server cannot be reached."""
        if self.unused:
            return f"The proxy of the {self.origin} is not used: {self.unused}."
        return (
            f"Is the proxy right? To reach {self.host} without it, add {self.host} to "
            f"{self.exceptions}."
        )


def find_proxy(
    target: Target, environment: Mapping[str, str], options: Mapping[str, str | int]
) -> Proxy | None:
    """The proxy for connections to a server, as gRPC chooses it; None if there is none.

    Args:
        target: the server.
        environment: as ``os.environ``.
        options: the channel's options.
    """
    if not options.get(ENABLE_OPTION, 1):
        return None
    exceptions = next((name for name in EXCEPTIONS if name in environment), EXCEPTIONS[-1])
    if PROXY_OPTION in options:
        origin, url = f"channel option {PROXY_OPTION}", str(options[PROXY_OPTION])
    else:
        name = next((name for name in VARIABLES if name in environment), "")
        origin, url = f"environment variable {name}", environment.get(name, "")
    listed = environment.get(exceptions, "")
    remote = [host for host in target.hosts if not _is_exception(host, listed)]
    if not url or not remote:
        return None
    shown = _without_user(url)
    unused = ""
    if target.several and PROXY_OPTION not in options:
        unused = "several addresses are reached directly"
    elif not url.lower().startswith("http://") or not shown:
        unused = "gRPC takes http://HOST:PORT only"
    return Proxy(remote[0], shown, origin, exceptions, unused)


def _without_user(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}" if host else ""


def _is_exception(host: str, listed: str) -> bool:
    """Whether a list has the host, a domain above it, or a network of its IP address."""
    host = host.lower()
    for entry in filter(None, (part.strip().lower() for part in listed.split(","))):
        if f".{host}".endswith(f".{entry.removeprefix('.')}"):
            return True
        try:
            if "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, False):
                return True
        except ValueError:
            continue
    return False
