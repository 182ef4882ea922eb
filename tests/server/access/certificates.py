"""A daemon's certificates on disk."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme

from multigrain_server.access.config import TlsConfig


@dataclass(frozen=True)
class Files:
    """A daemon's certificates in a folder."""

    folder: Path

    def config(self, *, mutual: bool = False) -> TlsConfig:
        return TlsConfig(
            certificate=self.folder / "server.pem",
            key=self.folder / "server.key",
            client_ca=self.folder / "ca.pem" if mutual else None,
        )

    def issue(self, authority: trustme.CA, not_after: datetime | None = None) -> None:
        """Writes a certificate for 127.0.0.1, as a renewal would."""
        made = authority.issue_cert("127.0.0.1", "localhost", not_after=not_after)
        made.private_key_pem.write_to_path(str(self.folder / "server.key"))
        chain = b"".join(part.bytes() for part in made.cert_chain_pems)
        (self.folder / "server.pem").write_bytes(chain)
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
