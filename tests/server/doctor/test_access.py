"""The doctor's checks of certificates and tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from multigrain_server.config import ServerConfig
from multigrain_server.doctor import network
from multigrain_server.doctor.finding import Finding, Level


def certificates(folder: Path, days: float) -> Finding:
    """The finding for a certificate that expires in so many days."""
    end = datetime.now(UTC) + timedelta(days=days)
    made = trustme.CA().issue_cert("localhost", not_before=end - timedelta(days=30), not_after=end)
    made.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    made.private_key_pem.write_to_path(str(folder / "server.key"))
    tls = {"certificate": folder / "server.pem", "key": folder / "server.key"}
    (folder / "server.key").chmod(0o640)
    (finding,) = network.certificates(ServerConfig.model_validate({"tls": tls}))
    return finding


@pytest.mark.parametrize(
    ("days", "level", "says"),
    [
        (20.3, Level.OK, "expires in 20 days"),
        (5.3, Level.WARN, "expires in 5 days"),
        (-3.3, Level.FAIL, "expired 3 days ago"),
    ],
)
def test_certificate_expiry(tmp_path: Path, days: float, level: Level, says: str) -> None:
    finding = certificates(tmp_path, days)
    assert (finding.level, finding.message) == (level, says)


def test_keys_and_token_files_that_other_users_can_use_are_reported(tmp_path: Path) -> None:
    certificates(tmp_path, 20)
    key, tokens = tmp_path / "server.key", tmp_path / "tokens.yaml"
    key.chmod(0o644)
    tokens.write_text("")
    tokens.chmod(0o622)
    tls = {"certificate": tmp_path / "server.pem", "key": key}
    config = ServerConfig.model_validate({"tls": tls, "access": {"tokens": tokens}})
    _, readable = network.certificates(config)
    _, writable = network.callers(config)
    assert (readable.level, readable.fix) == (Level.WARN, f"chmod o-rwx {key}")
    assert (writable.level, writable.fix) == (Level.WARN, f"chmod go-w {tokens}")


def test_unusable_files_and_exposed_addresses(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    config = ServerConfig.model_validate(
        {
            "listen": "0.0.0.0:0",
            "insecure": True,
            "tls": {"certificate": missing, "key": missing},
            "access": {"tokens": missing},
        }
    )
    (certificate,) = network.certificates(config)
    (tokens,) = network.callers(config)
    assert certificate.level is tokens.level is Level.FAIL
    assert "No such file" in certificate.message
    assert "No such file" in tokens.message
    missing.write_text("")
    missing.chmod(0o600)
    exposed = ServerConfig.model_validate(
        {"listen": "0.0.0.0:0", "insecure": True, "access": {"tokens": missing}}
    )
    empty, warning = network.callers(exposed)
    assert (empty.level, empty.message) == (Level.OK, "0 in the file")
    assert (warning.level, warning.message) == (
        Level.WARN,
        "tokens are sent unencrypted",
    )
    assert not list(network.certificates(ServerConfig()))
