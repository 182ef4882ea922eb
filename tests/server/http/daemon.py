"""A daemon in the test's process that serves a tiny model, and requests to its HTTP address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from multigrain_server.access.config import AccessConfig
from multigrain_server.app import App
from multigrain_server.config import GrpcConfig, JobsConfig, ServerConfig
from tests.engine.bundles import write_bundle
from tests.server.jobs.conftest import FAKE_RUNNER
from tests.server.serving.harness import small_config


@dataclass
class Answer:
    """A response that was read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Daemon:
    """A running daemon."""

    def __init__(self, app: App, session: aiohttp.ClientSession, root: Path) -> None:
        self.app = app
        #: Jobs may read what is below it.
        self.root = root
        self._session = session
        #: By role, if there are any.
        self.tokens: dict[str, str] = {}

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        url = f"http://{self.app.http_address}{path}"
        async with self._session.request(method, url, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.request("POST", path, **options)

    async def raw(self, data: bytes, *, seconds: float = 10) -> bytes:
        """What the daemon sends back until it closes the connection."""
        host, _, port = self.app.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        async with asyncio.timeout(seconds):
            answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def daemon(
    root: Path, access: AccessConfig | None = None, grpc: GrpcConfig | None = None
) -> AsyncIterator[Daemon]:
    """A daemon with the loaded model "tiny".

    Args:
        root: its data directory is below it, and what jobs may read.
        access: who may do what.
        grpc: limits of messages.
    """
    write_bundle(root / "data" / "models")
    config = ServerConfig(
        data_dir=root / "data",
        data_root=(root,),
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        jobs=JobsConfig(poll_seconds=0.01),
        serving=small_config(),
        access=access or AccessConfig(),
        grpc=grpc or GrpcConfig(),
    )
    app = App(config, FAKE_RUNNER)
    await app.start()
    try:
        await app.models.load("tiny")
        async with aiohttp.ClientSession() as session:
            yield Daemon(app, session, root)
    finally:
        await app.stop()
        await app.close_connections()
