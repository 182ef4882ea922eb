"""Bounds on connections of the gRPC address."""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import grpc.aio
import pytest

from multigrain.v1.job_pb2 import ListJobsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_server.app import App
from multigrain_server.config import GrpcConfig, ServerConfig
from multigrain_server.grpc.connections import Connection, ConnectionGuard, max_connections
from tests.server.jobs.conftest import FAKE_RUNNER


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
