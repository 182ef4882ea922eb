"""Bounds on connections of the gRPC address."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from multigrain.v1.job_pb2 import ListJobsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_server.app import App
from multigrain_server.config import GrpcConfig, ServerConfig
from multigrain_server.grpc.connections import Connection, ConnectionGuard, max_connections
from tests.raw_http2 import PREFACE, headers, many_headers, settings
from tests.server.jobs.conftest import FAKE_RUNNER

KIB = 1 << 10
EMBED = "/multigrain.v1.EmbeddingService/Embed"


def half_open(address: str) -> socket.socket:
    """A connection that sends nothing."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


async def is_ended(sock: socket.socket) -> bool:
    """Whether the server ends a connection; reads what it sends before."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(5):
            while await loop.sock_recv(sock, 4096):
                pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


async def test_connections_of_a_host_without_an_authorized_call_are_ended(tmp_path: Path) -> None:
    config = ServerConfig(
        data_dir=tmp_path / "data",
        listen="127.0.0.1:0",
        http_listen="",
        grpc=GrpcConfig(max_connections_per_host=5),
    )
    app = App(config, FAKE_RUNNER)
    await app.start()
    try:
        async with grpc.aio.insecure_channel(app.address) as channel:
            await JobServiceStub(channel).ListJobs(ListJobsRequest())
            state = channel.get_state()
            with ExitStack() as stack:
                idle = [stack.enter_context(half_open(app.address)) for _ in range(12)]
                assert await is_ended(idle[0])
                # The oldest ones go; the one in use, which is older, stays.
                assert channel.get_state() is state
                await JobServiceStub(channel).ListJobs(ListJobsRequest())
    finally:
        await app.stop()
        await app.close_connections()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_only_accepted_connections_to_the_port_are_found(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((host, 0))
        server.listen()
        client.connect(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            guard = ConnectionGuard(GrpcConfig())
            guard._port = server.getsockname()[1]
            guard.scan()
            (found,) = guard._connections.values()
            assert found.descriptor == accepted.fileno()
            assert found.peer == (host, client.getsockname()[1])
            client.sendall(bytes(1000))
            peer = f"{host}:{found.peer[1]}" if host != "::1" else f"%5B::1%5D:{found.peer[1]}"
            kind = "ipv4" if host != "::1" else "ipv6"
            accepted.recv(1000)
            assert guard.received_bytes(f"{kind}:{peer}") == 1000
            assert found.end()
            assert client.recv(1) == b""


def test_no_client_of_a_unix_socket_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have one name, and the search would be repeated hundreds of times a second."""
    guard = ConnectionGuard(GrpcConfig())
    monkeypatch.setattr(guard, "scan", lambda: pytest.fail("searched"))
    assert guard.received_bytes("unix:") == 0
    assert guard.received_bytes("unix:/run/multigrain.sock") == 0


def test_a_reused_descriptor_is_not_shut_down() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        assert not Connection(1, ours.fileno(), ("127.0.0.1", 5)).end()
        other.send(b"x")
        assert ours.recv(1) == b"x"


def test_connections_leave_descriptors_for_other_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GrpcConfig(max_connections=4096)
    for soft, expected in ((64, 16), (256, 64), (1024, 768), (20_000, 4096), (-1, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert max_connections(config) == expected


class Fake(Connection):
    """A connection that has sent some bytes."""

    sent = 0
    ended = False

    def received_bytes(self) -> int:
        return self.sent

    def end(self) -> bool:
        object.__setattr__(self, "ended", True)
        return True


def connect(guard: ConnectionGuard, sent: list[int], since: float = 0.0) -> list[Fake]:
    """Adds connections to those that a guard knows."""
    made = []
    for kib in sent:
        inode = 1 + len(guard._connections)
        fake = Fake(inode, -1, ("10.0.0.1", inode), since)
        object.__setattr__(fake, "sent", kib * KIB)
        guard._connections[inode] = fake
        made.append(fake)
    return made


def peer(fake: Fake) -> str:
    return f"ipv4:10.0.0.1:{fake.peer[1]}"


def ended(fakes: list[Fake]) -> list[bool]:
    return [fake.ended for fake in fakes]


def test_silent_connections_make_room_before_those_that_have_sent_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host may open hundreds while the health check of another program on it is answered."""
    guard = ConnectionGuard(GrpcConfig(max_connections_per_host=3))
    monkeypatch.setattr(guard, "scan", lambda: None)
    fakes = connect(guard, [1, 0, 0, 0, 1, 0])
    assert guard.check() == 3
    assert ended(fakes) == [False, True, True, True, False, False]


def test_new_connections_that_send_much_before_a_call_are_ended() -> None:
    guard = ConnectionGuard(GrpcConfig())
    fakes = connect(guard, [300, 90, 400, 350, 10])
    for now in (1.0, 1.1, 1.2):
        guard.check_bytes(now)
    # The loop may not have come to their calls yet.
    assert not any(ended(fakes))
    guard.check_bytes(1.26)
    # The largest, until the others are below the limit.
    assert ended(fakes) == [False, False, True, False, False]


def test_connections_of_many_new_clients_are_not_ended_while_some_are_authorized() -> None:
    guard = ConnectionGuard(GrpcConfig())
    fakes = connect(guard, [1000] * 20)
    now = 1.0
    for fake in fakes[:10]:
        guard.check_bytes(now)
        guard.authorize(peer(fake))
        now += 0.05
    guard.check_bytes(now)
    assert not any(ended(fakes))
    # Nothing came of the others.
    guard.check_bytes(now + 1.0)
    assert not any(ended(fakes[:10]))
    assert any(ended(fakes[10:]))


def test_connections_whose_calls_were_refused_may_have_sent_a_window() -> None:
    guard = ConnectionGuard(GrpcConfig())
    fakes = connect(guard, [1100, 1100])
    for fake in fakes:
        guard.answer(peer(fake))
    for now in (1.0, 1.1, 3.0):
        guard.check_bytes(now)
    assert not any(ended(fakes))


def test_what_was_sent_before_an_answered_call_is_not_counted() -> None:
    guard = ConnectionGuard(GrpcConfig())
    fakes = connect(guard, [9000] * 4)
    guard._by_peer = {fake.peer: fake for fake in fakes}
    for fake in fakes:
        guard.answer(peer(fake))
    with guard.discarding(peer(fakes[0])):
        object.__setattr__(fakes[0], "sent", 60_000 * KIB)
        for now in (1.0, 1.3):
            guard.check_bytes(now)
    for now in (1.4, 1.7):
        guard.check_bytes(now)
    assert not any(ended(fakes))
    # What came afterwards is.
    for fake in fakes:
        object.__setattr__(fake, "sent", fake.sent + 1100 * KIB)
    for now in (1.8, 2.1):
        guard.check_bytes(now)
    assert any(ended(fakes))
    assert not all(ended(fakes))


def test_connections_that_have_acknowledged_the_settings_are_not_examined() -> None:
    guard = ConnectionGuard(GrpcConfig())
    fakes = connect(guard, [5000, 5000])
    assert guard.check_bytes(20.0) is None
    assert guard.check_bytes(20.1) is None
    assert not any(ended(fakes))


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    config = ServerConfig(data_dir=tmp_path / "data", listen="127.0.0.1:0", http_listen="")
    app = App(config, FAKE_RUNNER)
    await app.start()
    yield app
    await app.stop()
    await app.close_connections()


def ended_for_bytes(app: App) -> float | None:
    return app.registry.get_sample_value("multigrain_connections_ended_total", {"reason": "bytes"})


async def test_headers_that_never_end_end_the_connection(app: App) -> None:
    # All frames but the last.
    block = PREFACE + settings() + headers(1, many_headers(EMBED, 300_000))[:-20_000]
    async with grpc.aio.insecure_channel(app.address) as channel:
        await JobServiceStub(channel).ListJobs(ListJobsRequest())
        state = channel.get_state()
        with ExitStack() as stack:
            for _ in range(6):
                sock = stack.enter_context(half_open(app.address))
                await asyncio.to_thread(sock.sendall, block)
            # gRPC itself would close them after 5 seconds.
            async with asyncio.timeout(4):
                while not ended_for_bytes(app):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert channel.get_state() is state
        await JobServiceStub(channel).ListJobs(ListJobsRequest())


async def test_new_clients_with_large_first_requests_are_not_ended(app: App) -> None:
    async def call(size: int) -> grpc.StatusCode:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(app.address, options) as channel:
            embed: Any = channel.unary_unary(EMBED)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await embed(bytes([0xFF] * 10) + bytes(size), timeout=60)
            return caught.value.code()

    sizes = [24 << 20] + [2 << 20] * 15
    codes = await asyncio.gather(*map(call, sizes))
    # Not a message of this method: it was read whole.
    assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert ended_for_bytes(app) == 0
