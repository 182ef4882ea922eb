"""Callers without a token cost next to nothing."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from multigrain.v1 import embedding_pb2, embedding_pb2_grpc, job_pb2, job_pb2_grpc
from tests.e2e.daemon import Daemon
from tests.raw_http2 import Connection, headers, repeated_headers
from tests.server.access.daemon import write_tokens

pytestmark = pytest.mark.process

MIB = 1 << 20
EMBED = "/multigrain.v1.EmbeddingService/Embed"
EMBED_STREAM = "/multigrain.v1.EmbeddingService/EmbedStream"
STREAM_EVENTS = "/multigrain.v1.JobService/StreamEvents"
IMPORT_MODEL = "/multigrain.v1.ModelService/ImportModel"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


class Served:
    """A daemon with a token file, and the token in it."""

    def __init__(self, daemon: Daemon, token: str) -> None:
        self.address = daemon.address
        self.token = token
        self.pid = daemon.process.pid

    def resident(self) -> int:
        return _memory(self.pid, "VmRSS")

    def list_jobs(self) -> None:
        """A call of somebody who has a token."""
        with grpc.insecure_channel(self.address) as channel:
            metadata = (("authorization", f"Bearer {self.token}"),)
            stub = job_pb2_grpc.JobServiceStub(channel)
            stub.ListJobs(job_pb2.ListJobsRequest(), metadata=metadata, timeout=60)

    def check(self) -> int:
        with grpc.insecure_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status)


def _memory(pid: int, name: str) -> int:
    (found,) = re.findall(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found) << 10


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("daemon")
    tokens = write_tokens(root / "tokens", "reader:read,infer")
    daemon = Daemon(root, flags=[f"--access-tokens={root / 'tokens'}"]).start()
    try:
        yield Served(daemon, tokens["reader"])
    finally:
        daemon.end()


class Peak:
    """The growth of a daemon's memory while a block runs."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._ended = threading.Event()
        self.growth = 0

    def __enter__(self) -> Peak:
        self._before = self._served.resident()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.growth = max(self.growth, self._served.resident() - self._before)


def send_unfinished(
    connections: list[Connection], method: str, size: int, metadata: Sequence[tuple[str, str]] = ()
) -> list[threading.Thread]:
    """Sends all but the last byte of a message on each connection at the same time."""
    threads = []
    for connection in connections:
        connection.open(1, method, metadata)
        thread = threading.Thread(
            target=connection.send_message, args=(1, size), kwargs={"missing": 1}
        )
        thread.start()
        threads.append(thread)
    return threads


@pytest.mark.parametrize("method", [EMBED, EMBED_STREAM, IMPORT_MODEL])
def test_no_message_is_received_without_a_token(served: Served, method: str) -> None:
    with Peak(served) as peak, ExitStack() as stack:
        connections = [stack.enter_context(Connection(served.address)) for _ in range(8)]
        threads = send_unfinished(connections, method, 32 * MIB)
        served.list_jobs()
        for connection, thread in zip(connections, threads, strict=True):
            assert connection.wait_for_end(1)
            thread.join()
    # Of streams, which some clients must be allowed to send, one at a time is discarded.
    assert peak.growth < (96 if method != EMBED else 24) * MIB


@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_unfinished_health_checks_are_ended(served: Served, method: str) -> None:
    with Peak(served) as peak, ExitStack() as stack:
        connections = [stack.enter_context(Connection(served.address)) for _ in range(8)]
        threads = send_unfinished(connections, method, 16 * MIB)
        # Answered meanwhile.
        assert served.check() == health_pb2.HealthCheckResponse.SERVING
        for connection, thread in zip(connections, threads, strict=True):
            assert connection.wait_for_end(1)
            thread.join()
    assert peak.growth < 96 * MIB


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize(("size", "says"), [(257, "at most 256"), (5000, "accepts 4096")])
def test_long_health_names_are_refused(served: Served, method: str, size: int, says: str) -> None:
    with grpc.insecure_channel(served.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="x" * size)
        calls: dict[str, Callable[[], object]] = {
            "Check": lambda: stub.Check(request, timeout=60),
            "Watch": lambda: next(iter(stub.Watch(request, timeout=60))),
        }
        with pytest.raises(grpc.RpcError, match=says) as caught:
            calls[method]()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", [EMBED, STREAM_EVENTS])
@pytest.mark.parametrize("size", [10, 32 * MIB])
def test_clients_get_the_status_while_they_send(served: Served, method: str, size: int) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(served.address, options) as channel:
        unary: Any = channel.unary_unary(EMBED)
        stream: Any = channel.unary_stream(STREAM_EVENTS)
        calls: dict[str, Callable[[], object]] = {
            EMBED: lambda: unary(bytes(size), timeout=60),
            STREAM_EVENTS: lambda: list(stream(bytes(size), timeout=60)),
        }
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                calls[method]()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "authorization: Bearer TOKEN" in (caught.value.details() or "")


async def test_asyncio_clients_get_the_status_of_streams(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.address) as channel:
        for size in (10, 100_000, 2 * MIB):
            stream: Any = channel.stream_stream(EMBED_STREAM)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stream(iter([bytes(size)] * 4), timeout=60):
                    pass
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_authorized_clients_hold_a_bounded_number_of_messages(served: Served) -> None:
    metadata = [("authorization", f"Bearer {served.token}")]
    with Peak(served) as peak, ExitStack() as stack:
        connections = [stack.enter_context(Connection(served.address)) for _ in range(24)]
        threads = send_unfinished(connections, EMBED, 12 * MIB, metadata)
        for thread in threads:
            thread.join()
        growth = peak.growth
    # Eight of them, with what gRPC reads ahead of the others.
    assert growth < 24 * 12 * MIB / 2


def test_streams_hold_a_bounded_number_of_unfinished_bytes(served: Served) -> None:
    metadata = [("authorization", f"Bearer {served.token}")]
    with Peak(served) as peak, ExitStack() as stack:
        connections = [stack.enter_context(Connection(served.address)) for _ in range(14)]
        threads = send_unfinished(connections, EMBED_STREAM, 50 * MIB, metadata)
        for thread in threads:
            thread.join()
            served.list_jobs()
        assert sum(bool(one.ended) for one in connections) >= 9  # 5 hold 250 MiB
    assert peak.growth < 450 * MIB


def test_large_messages_in_many_streams_are_all_answered(served: Served) -> None:
    """Those of an ordinary client, which come to their end."""
    metadata = (("authorization", f"Bearer {served.token}"),)
    image = bytes(8 * MIB)
    found = []

    def send() -> None:
        with grpc.insecure_channel(served.address) as channel:
            stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            requests = iter([embedding_pb2.EmbedRequest(images=[image])])
            try:
                list(stub.EmbedStream(requests, metadata=metadata, timeout=60))
            except grpc.RpcError as error:
                found.append(error.code())

    threads = [threading.Thread(target=send) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # No model is loaded.
    assert found == 12 * [grpc.StatusCode.NOT_FOUND]


def test_repeated_headers_cost_no_lasting_memory(served: Served) -> None:
    before = served.resident()
    block = repeated_headers(CHECK)
    for _ in range(15):
        with Connection(served.address) as connection:
            connection.send(headers(1, block))
            connection.wait_for_end(1)
    assert served.check() == health_pb2.HealthCheckResponse.SERVING
    until = time.monotonic() + 60
    while served.resident() - before > 64 * MIB:
        assert time.monotonic() < until
        time.sleep(0.2)
    served.list_jobs()
