"""The HTTP server of a running daemon."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
import psutil
import pytest
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families

from multigrain.v1.job_pb2 import DeleteJobRequest, StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain.v1.training_pb2_grpc import TrainingServiceStub
from multigrain.v1.training_spec_pb2 import DatasetSpec, TrainingSpec
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from multigrain_server.app import App
from multigrain_server.http import server
from multigrain_server.http.api import Api
from multigrain_server.http.host_check import HostCheck


async def _http(app: App, head: str, name: str = "daemon") -> tuple[int, str]:
    host, _, port = app.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}\r\nHost: {name}\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    headers = answer.partition("\r\n\r\n")[0]
    assert "Connection: close" in headers or headers.startswith("HTTP/1.0")
    assert "aiohttp" not in headers  # no versions for attackers
    assert "X-Content-Type-Options: nosniff" in headers
    assert "Content-Security-Policy: default-src 'none'" in headers
    return int(answer.split(" ")[1]), answer.partition("\r\n\r\n")[2]


def connections(app: App) -> int:
    assert app._http is not None
    return len(app._http.connections)


async def _samples(app: App) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    status, body = await _http(app, "GET /metrics HTTP/1.1")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def _key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"multigrain_{name}", frozenset(labels.items())


async def test_job_metrics_appear_and_disappear_with_the_job(
    app: App, channel: grpc.aio.Channel, dataset: Path
) -> None:
    spec = TrainingSpec(preset="digits-demo", dataset=DatasetSpec(train_path=str(dataset)))
    spec.dataset.val_path = ""
    request = StartTrainingRequest(labels={"events": "4"}, spec=spec)
    job = (await TrainingServiceStub(channel).StartTraining(request)).job_id
    jobs = JobServiceStub(channel)
    async for _ in jobs.StreamEvents(StreamEventsRequest(job_id=job, follow=True)):
        pass
    samples = await _samples(app)
    assert samples[_key("job_state", job=job, state="SUCCEEDED")] == 1
    assert samples[_key("job_step", job=job)] == 4
    assert samples[_key("job_loss", job=job, term="total")] == 0.25
    for decision, layers in (("refreshed", 17), ("kept", 30), ("stopped", 7)):
        assert samples[_key("job_curvature_layers", job=job, decision=decision)] == layers
    assert samples[_key("job_attempt", job=job)] == 1
    assert samples[_key("jobs", state="SUCCEEDED")] == 1
    assert samples[_key("events_total", kind="loss")] == 4
    rpc = "TrainingService/StartTraining"
    assert samples[_key("requests_total", rpc=rpc, code="OK")] == 1
    assert samples[_key("request_seconds_count", rpc=rpc)] == 1
    assert samples[_key("events_streamed_total")] >= 8
    for _ in range(100):
        try:
            await jobs.DeleteJob(DeleteJobRequest(job_id=job))
            break
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)
    for _ in range(100):  # a page is kept for a moment
        after = await _samples(app)
        if not (left := [key for key in after if ("job", job) in key[1]]):
            break
        await asyncio.sleep(0.05)
    assert not left
    assert after[_key("devices", kind="cpu", state="free")] == 1
    assert after[_key("jobs", state="SUCCEEDED")] == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /healthz HTTP/1.1", 200),
        ("GET /readyz?x=1 HTTP/1.1", 200),
        ("HEAD /metrics HTTP/1.1", 200),
        ("GET / HTTP/1.1", 200),
        ("POST /metrics HTTP/1.1", 405),
        ("nonsense", 400),
        ("GET /metrics HTTP/1.1\r\nX: " + "y" * 20_000, 431),
    ],
)
async def test_status_codes(app: App, head: str, status: int) -> None:
    assert (await _http(app, head))[0] == status


async def test_draining_is_healthy_but_not_ready(app: App) -> None:
    app.health.drain()
    assert (await _http(app, "GET /healthz HTTP/1.1"))[0] == 200
    assert (await _http(app, "GET /readyz HTTP/1.1"))[0] == 503


async def test_a_client_that_does_not_read_is_disconnected(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CLIENT_SECONDS", 0.1)
    # More than the sockets of both sides hold.
    Gauge("large", "x" * 16_000_000, registry=app.registry)
    process = psutil.Process()
    host, _, port = app.http_address.rpartition(":")
    before = process.num_fds()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: daemon\r\n\r\n")
        async with asyncio.timeout(10):
            while connections(app) == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            while connections(app):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while process.num_fds() > before + 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def limit(app: App, **limits: Any) -> None:
    """Changes limits of connections."""
    assert app._http is not None
    acceptor = app._http.connections
    acceptor._limits = replace(acceptor._limits, **limits)


async def half_open(app: App) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose request does not end."""
    host, _, port = app.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("name", ["total", "per_host"])
async def test_half_open_connections_make_room_for_probes(app: App, name: str) -> None:
    limit(app, request_seconds=600.0, **{name: 3})
    idle = []
    for number in range(10):
        idle.append(await half_open(app))
        assert (await _http(app, "GET /healthz HTTP/1.1"))[0] == 200, number
        assert connections(app) <= 3
    async with asyncio.timeout(10):
        # The oldest ones were closed.
        for reader, _ in idle[:7]:
            assert await reader.read() == b""
    for _, writer in idle:
        writer.close()


async def test_probes_are_answered_while_a_host_floods(app: App) -> None:
    flooding = True

    async def flood() -> None:
        opened: list[asyncio.StreamWriter] = []
        while flooding:
            with suppress(OSError):
                opened.append((await half_open(app))[1])
            if len(opened) > 50:
                opened.pop(0).close()
        for writer in opened:
            writer.close()

    floods = [asyncio.create_task(flood()) for _ in range(4)]
    try:
        for _ in range(50):
            assert (await _http(app, "GET /healthz HTTP/1.1"))[0] == 200
    finally:
        flooding = False
        await asyncio.gather(*floods)


async def test_a_connection_with_a_request_is_not_displaced(app: App) -> None:
    limit(app, request_seconds=600.0, total=1)
    assert app._http is not None
    acceptor = app._http.connections
    async with asyncio.timeout(10):
        reader, writer = await half_open(app)
        while connections(app) < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        (place,) = acceptor._places
        place.requested()
        host, _, port = app.http_address.rpartition(":")
        late, late_writer = await asyncio.open_connection(host, int(port))
        assert await late.read() == b""
        writer.write(b"y\r\nHost: daemon\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
        late_writer.close()


async def test_a_client_that_sends_no_request_is_disconnected(app: App) -> None:
    limit(app, request_seconds=0.1)
    host, _, port = app.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metr")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost:9464", 200),
        ("127.0.0.1:9464", 200),
        ("10.0.0.7", 200),
        ("[::1]:9464", 200),
        ("trainer", 200),
        ("trainer.default.svc.cluster.local:9464", 200),
        ("rebound.example.com", 421),
        ("127.0.0.1.example.com:9464", 421),
        ("localhost.example.com.", 421),
    ],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz"])
async def test_public_names_are_refused_without_tokens(
    app: App, name: str, status: int, path: str
) -> None:
    answer = await _http(app, f"GET {path} HTTP/1.1", name)
    assert answer[0] == status
    assert ("--access-hosts" in answer[1]) == (status == 421)


def test_configured_names_are_accepted() -> None:
    check = HostCheck(["Trainer.example.com"])
    assert check.allows("trainer.EXAMPLE.com:9464")
    assert check.allows(None)
    assert not check.allows("other.example.com")


def test_a_name_server_that_does_not_answer_holds_nothing_up() -> None:
    answers = threading.Event()

    def own_name() -> str:
        assert answers.wait(10)
        return "trainer.example.com"

    check = HostCheck([], own_name)
    assert check.allows("127.0.0.1:9464")
    assert not check.allows("trainer.example.com")
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "own-name":
            thread.join(10)
    assert check.allows("Trainer.example.com.:9464")


async def test_any_name_is_accepted_with_a_certificate() -> None:
    """A browser has compared the name with the certificate; the operator need not list it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    access, page = Access(AccessConfig()), cast(Any, None)
    api = Api(page, page, page, 0)
    made = server.HttpServer(page, bool, access, page, lambda: context, api=api)
    assert made._host_check is None
    assert server.HttpServer(page, bool, access, page, api=api)._host_check is not None
