"""A daemon in the test's process, with TLS or tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from multigrain_server.access.config import AccessConfig, TlsConfig
from multigrain_server.access.policy import Role
from multigrain_server.access.tokens import NewToken
from multigrain_server.app import App
from multigrain_server.config import ServerConfig
from tests.server.jobs.conftest import FAKE_RUNNER


@asynccontextmanager
async def daemon(
    root: Path,
    *,
    tls: TlsConfig | None = None,
    access: AccessConfig | None = None,
    http: bool = False,
) -> AsyncIterator[App]:
    config = ServerConfig(
        data_dir=root / "data",
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0" if http else "",
        tls=tls or TlsConfig(),
        access=access or AccessConfig(),
    )
    app = App(config, FAKE_RUNNER)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()
        await app.close_connections()


def write_tokens(path: Path, *names: str) -> dict[str, str]:
    """Writes a token file for names and roles ("name:role,role"); returns the tokens by name."""
    made = [NewToken.parse(name) for name in names]
    path.write_text("".join(f"{token.line}\n" for token in made))
    return {token.entry.name: token.token for token in made}


def token_for_each_role(path: Path) -> dict[str, str]:
    return write_tokens(path, *(f"{role.value}:{role.value}" for role in Role))
