"""Checks of the Python that runs the daemon: known holes in modules that others' data reaches.

Distributions add fixes to older versions: Debian's 3.11.2 has them, 3.11.7 of python.org has not.
Each fix is therefore recognized by what it added to the module, not by the version.
"""

from __future__ import annotations

import asyncio.selector_events
import ssl
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from multigrain_server.doctor.finding import Finding, ok, warn


@dataclass(frozen=True)
class Hole:
    """A hole of the standard library.

    Attributes:
        cve: its number.
        module: where it is.
        matters: what it means for this program.
        fixed: whether this Python has the fix.
    """

    cve: str
    module: str
    matters: str
    fixed: Callable[[], bool]

    def __str__(self) -> str:
        return f"{self.cve} in {self.module} ({self.matters})"


def _tls_handshake() -> bool:
    create: Any = ssl.SSLSocket._create  # type: ignore[attr-defined]
    return "notconn_pre_handshake_data" in create.__func__.__code__.co_varnames


def _write_limit() -> bool:
    transport: Any = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    own = vars(transport).get("writelines")  # since Python 3.12
    return own is None or "_maybe_pause_protocol" in own.__code__.co_names


HOLES: Sequence[Hole] = (
    Hole(
        "CVE-2024-6232",
        "tarfile",
        "an archive can stop the process for hours; imported archives are not given to tarfile, "
        "but other programs of this Python may read them with it",
        lambda: hasattr(tarfile, "_header_length_prefix_re"),
    ),
    Hole(
        "CVE-2023-6597",
        "tempfile",
        "removing a temporary folder may change the permissions of files that links in it lead to",
        lambda: hasattr(tempfile, "_dont_follow_symlinks"),
    ),
    Hole(
        "CVE-2023-40217",
        "ssl",
        "data sent before a TLS handshake may be taken for data of an authenticated client",
        _tls_handshake,
    ),
    Hole(
        "CVE-2024-12254",
        "asyncio",
        "a client that does not read can fill the memory of an HTTP server",
        _write_limit,
    ),
)


def python(holes: Sequence[Hole] = HOLES) -> Iterator[Finding]:
    """The version of Python, and its known holes."""
    version = sys.version.split()[0]
    found = [str(hole) for hole in holes if not hole.fixed()]
    if found:
        yield warn(
            "python",
            f"{version} has known holes: {'; '.join(found)}",
            "use the newest patch release of Python 3.11 or 3.12, or that of your distribution, "
            "which adds the fixes to older versions (Debian 12: /usr/bin/python3), and make the "
            "virtual environment again",
        )
    else:
        yield ok("python", version)
