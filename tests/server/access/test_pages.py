"""Who may see the pages of the HTTP address."""

from __future__ import annotations

import asyncio
import base64
import ssl
from pathlib import Path

import pytest
import trustme

from multigrain_server.access.config import AccessConfig, TlsConfig
from multigrain_server.access.policy import Role
from multigrain_server.app import App
from tests.server.access.certificates import Files
from tests.server.access.daemon import daemon, token_for_each_role

PAGES = ["/metrics", "/", "/not/there", "/metrics/../metrics"]
HEALTH = ["/healthz", "/readyz"]


async def get(
    app: App, path: str, *headers: str, tls: ssl.SSLContext | None = None
) -> tuple[int, str]:
    """Status and the whole answer."""
    host, _, port = app.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
    lines = (f"GET {path} HTTP/1.1", "Host: daemon", *headers, "")
    writer.write("".join(f"{line}\r\n" for line in lines).encode())
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split(" ")[1]), answer


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


@pytest.mark.parametrize("path", PAGES)
async def test_every_path_needs_a_token_that_may_read(tmp_path: Path, path: str) -> None:
    tokens = token_for_each_role(tmp_path / "tokens")
    access = AccessConfig(tokens=tmp_path / "tokens")
    async with daemon(tmp_path, access=access, http=True) as app:
        status, answer = await get(app, path)
        assert status == 401
        assert "WWW-Authenticate: Basic" in answer
        for role, token in tokens.items():
            allowed = role in (Role.READ.value, Role.ADMIN.value)
            expected = (200 if path in ("/metrics", "/") else 404) if allowed else 403
            assert (await get(app, path, bearer(token)))[0] == expected
            assert (await get(app, path, bearer(token), bearer(token)))[0] == 401
        for wrong in ("Bearer x", "Basic x", "Basic eDp5", "Digest x", "Bearer", ""):
            assert (await get(app, path, f"Authorization: {wrong}"))[0] == 401


async def test_a_browser_sends_the_token_as_a_password(tmp_path: Path) -> None:
    tokens = token_for_each_role(tmp_path / "tokens")
    async with daemon(tmp_path, access=AccessConfig(tokens=tmp_path / "tokens"), http=True) as app:
        pair = base64.b64encode(f"me:{tokens['read']}".encode()).decode()
        assert (await get(app, "/metrics", f"authorization: basic {pair}"))[0] == 200


@pytest.mark.parametrize(("health", "status"), [("open", 200), ("token", 401)])
async def test_access_to_health_is_a_separate_setting(
    tmp_path: Path, health: str, status: int
) -> None:
    tokens = token_for_each_role(tmp_path / "tokens")
    access = AccessConfig.model_validate({"tokens": tmp_path / "tokens", "health": health})
    async with daemon(tmp_path, access=access, http=True) as app:
        for path in HEALTH:
            assert (await get(app, path))[0] == status
            assert (await get(app, path, bearer(tokens["infer"])))[0] == 200


async def test_pages_can_be_open_while_calls_need_tokens(tmp_path: Path) -> None:
    token_for_each_role(tmp_path / "tokens")
    access = AccessConfig(tokens=tmp_path / "tokens", pages="open")
    async with daemon(tmp_path, access=access, http=True) as app:
        assert (await get(app, "/metrics"))[0] == 200


async def test_token_limits_apply_to_pages(tmp_path: Path) -> None:
    token = token_for_each_role(tmp_path / "tokens")["read"]
    text = (tmp_path / "tokens").read_text()
    (tmp_path / "tokens").write_text(text.replace("}", ", calls_per_second: 0.001}"))
    async with daemon(tmp_path, access=AccessConfig(tokens=tmp_path / "tokens"), http=True) as app:
        assert (await get(app, "/metrics", bearer(token)))[0] == 200
        status, answer = await get(app, "/metrics", bearer(token))
        assert status == 429
        assert "Retry-After: 1000" in answer


def trusting(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    if certificate is not None:
        certificate.configure_cert(context)
    return context


async def works(app: App, tls: ssl.SSLContext | None) -> bool:
    try:
        return (await get(app, "/readyz", tls=tls))[0] == 200
    except (ssl.SSLError, OSError, IndexError):
        return False


async def test_pages_use_and_reload_the_same_certificate(tmp_path: Path) -> None:
    files, authority, renewed = Files(tmp_path), trustme.CA(), trustme.CA()
    files.issue(authority)
    tls = files.config().model_copy(update={"http": True})
    async with daemon(tmp_path, tls=tls, http=True) as app:
        assert await works(app, trusting(authority))
        assert not await works(app, trusting(renewed))
        assert not await works(app, None)
        files.issue(renewed)
        assert await works(app, trusting(renewed))
        assert not await works(app, trusting(authority))


async def test_mutual_tls_applies_to_pages(tmp_path: Path) -> None:
    files, authority = Files(tmp_path), trustme.CA()
    files.issue(authority)
    tls: TlsConfig = files.config(mutual=True).model_copy(update={"http": True})
    async with daemon(tmp_path, tls=tls, http=True) as app:
        ours = authority.issue_cert("prometheus@example.org")
        theirs = trustme.CA().issue_cert("prometheus@example.org")
        assert await works(app, trusting(authority, ours))
        assert not await works(app, trusting(authority, theirs))
        assert not await works(app, trusting(authority))
