"""Who may use which route of the HTTP API, and what callers without rights can cost."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
import trustme

from multigrain_server.access.config import AccessConfig
from multigrain_server.access.policy import Role
from multigrain_server.config import GrpcConfig
from tests.engine.pictures import picture
from tests.server.access.certificates import Files
from tests.server.access.daemon import daemon as bare_daemon
from tests.server.access.daemon import token_for_each_role
from tests.server.access.test_matrix import MATRIX
from tests.server.http.daemon import Daemon, daemon
from tools.docs.openapi import ROUTES, Route

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]

MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon with tokens, and messages of at most 20 MiB."""
    root = tmp_path_factory.mktemp("guarded")
    tokens = token_for_each_role(root / "tokens")
    access = AccessConfig(tokens=root / "tokens")
    async with daemon(root, access, GrpcConfig(max_message_mib=20)) as running:
        running.tokens = tokens
        yield running


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def _call(served: Daemon, route: Route, headers: dict[str, str]) -> int:
    path = re.sub(r"{(\w+)}", "x", route.path).replace("versions/x", "versions/1")
    if route.body:
        headers = {**headers, "Content-Type": "image/png"}
    answer = await served.request(route.method.upper(), path, headers=headers)
    return answer.status


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_a_route_needs_the_role_of_its_call(guarded: Daemon, route: Route) -> None:
    service, _, call = route.call.rpartition("/")
    allowed = MATRIX[service][call].split()
    if allowed == ["open"]:
        assert await _call(guarded, route, {}) == 200
        return
    assert await _call(guarded, route, {}) == 401
    assert await _call(guarded, route, _bearer("wrong")) == 401
    for role in Role:
        status = await _call(guarded, route, _bearer(guarded.tokens[role.value]))
        may = role is Role.ADMIN or role.value in allowed
        assert (status not in (401, 403)) == may, (role, status)


async def test_a_body_is_not_read_before_authorization(guarded: Daemon) -> None:
    """The daemon's memory does not grow by what callers without a token send."""
    before = psutil.Process().memory_info().rss
    head = (
        "POST /v1/embed HTTP/1.1\r\nHost: daemon\r\nContent-Type: image/png\r\n"
        f"Content-Length: {19 * MIB}\r\n\r\n"
    ).encode()
    host, _, port = guarded.app.http_address.rpartition(":")

    async def flood() -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head)
        answer = await reader.readuntil(b"\r\n\r\n")
        try:
            for _ in range(19):
                writer.write(bytes(MIB))
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()
        return answer

    answers = await asyncio.gather(*(flood() for _ in range(8)))
    assert all(answer.startswith(b"HTTP/1.1 401") for answer in answers)
    # The test's own buffers are in the same process.
    assert psutil.Process().memory_info().rss - before < 60 * MIB


async def test_a_client_that_waits_for_continue_sends_nothing_without_a_token(
    guarded: Daemon,
) -> None:
    request = (
        b"POST /v1/embed HTTP/1.1\r\nHost: daemon\r\nContent-Type: image/png\r\n"
        b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
    )
    answer = await guarded.raw(request)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"100 Continue" not in answer


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("kind", "size"), [("image/png", 21 * MIB), ("application/json", 17 * MIB)]
)
async def test_a_body_above_the_limit_is_refused(
    guarded: Daemon, kind: str, size: int, chunked: bool
) -> None:
    headers = {**_bearer(guarded.tokens["infer"]), "Content-Type": kind}

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield b" " * MIB

    data: Any = parts() if chunked else b" " * size
    try:
        answer = await guarded.post("/v1/embed", data=data, headers=headers)
    except aiohttp.ClientOSError:
        return  # the connection was closed while the client was still sending
    assert answer.status == 400
    assert "larger than" in answer.json["error"]["message"]


async def test_refused_bodies_count_as_waste(guarded: Daemon) -> None:
    headers = {**_bearer(guarded.tokens["infer"]), "Content-Type": "application/json"}
    pacing = guarded.app.images.pacing
    await guarded.post("/v1/embed", data=b"[" * MIB, headers=headers)
    assert pacing.sends_unreadable("infer")


async def test_two_lengths_are_refused(guarded: Daemon) -> None:
    """A proxy may take another one than the daemon (request smuggling)."""
    for lines in (
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: +5\r\n",
    ):
        request = b"POST /v1/embed HTTP/1.1\r\nHost: daemon\r\n" + lines + b"\r\n0\r\n\r\n"
        assert (await guarded.raw(request))[8:].startswith(b" 400"), lines


async def test_a_call_without_its_body_ends(guarded: Daemon) -> None:
    """An authorized client that sends a part of a body holds a place, not a thread or a lock."""
    token = guarded.tokens["infer"]
    request = (
        f"POST /v1/embed HTTP/1.1\r\nHost: daemon\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
    ).encode()
    host, _, port = guarded.app.http_address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    headers = {**_bearer(token), "Content-Type": "image/png"}
    answer = await guarded.post("/v1/embed", data=picture(1), headers=headers)
    assert answer.status == 200
    async with asyncio.timeout(10):
        while guarded.app._calls.in_flight != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        writer.close()
        while guarded.app._calls.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_api_asks_for_certificates_as_grpc_does(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = Files(tmp_path)
    files.issue(authority)
    config = files.config(mutual=True)
    async with bare_daemon(tmp_path / "a", tls=config, http=True) as app:
        url = f"http://{app.http_address}/v1/models"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 403
            assert "tls.http" in (await response.json())["error"]["message"]
    config = config.model_copy(update={"http": True})
    async with bare_daemon(tmp_path / "b", tls=config, http=True) as app:
        url = f"https://{app.http_address}/v1/models"
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(url, ssl=context)
            authority.issue_cert("client").configure_cert(context)
            async with session.get(url, ssl=context) as response:
                assert response.status == 200
