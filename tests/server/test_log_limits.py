"""Failed calls cannot fill the disk with log lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import structlog
from structlog.testing import capture_logs

from multigrain.v1 import job_pb2, job_pb2_grpc
from multigrain_server import log_limits
from multigrain_server.access.config import AccessConfig
from multigrain_server.log_limits import FailedCallLines
from tests.server.access.daemon import daemon, write_tokens


class Clock:
    """Moves when the test says so, and then calls what is due."""

    def __init__(self) -> None:
        self.now = 100.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._due.append((self.now + seconds, call))

    def move(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self._due if at <= self.now]
        self._due = [(at, call) for at, call in self._due if at > self.now]
        for call in due:
            call()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> FailedCallLines:
    return FailedCallLines(clock, clock.later)


def test_the_first_calls_of_a_host_have_lines_and_the_rest_one_together(
    lines: FailedCallLines, clock: Clock
) -> None:
    with capture_logs() as logged:
        allowed = [lines.allow("UNAUTHENTICATED", "10.0.0.1") for _ in range(5000)]
        # Another host, and another code, are still seen.
        assert lines.allow("UNAUTHENTICATED", "10.0.0.2")
        assert lines.allow("RESOURCE_EXHAUSTED", "10.0.0.1")
        assert logged == []
        clock.move(10)
    assert allowed == [True] * 5 + [False] * 4995
    (summary,) = logged
    assert summary["calls"] == 4995
    assert summary["codes"] == {"UNAUTHENTICATED": 4995}
    assert summary["hosts"] == {"10.0.0.1": 4995}


def test_many_hosts_make_as_few_lines(lines: FailedCallLines, clock: Clock) -> None:
    allowed = 0
    with capture_logs() as logged:
        for number in range(30_000):
            allowed += lines.allow("PERMISSION_DENIED", f"10.0.{number % 3000}")
            clock.move(0.001)
        clock.move(10)
    assert allowed <= 20 * 4
    assert len(logged) <= 4
    assert sum(line["calls"] for line in logged) + allowed == 30_000
    assert all(len(line["hosts"]) <= 17 for line in logged)


def test_a_few_failed_calls_have_their_lines_for_ever(lines: FailedCallLines, clock: Clock) -> None:
    with capture_logs() as logged:
        for _ in range(100):
            assert lines.allow("NOT_FOUND", "10.0.0.1")
            clock.move(3)
    assert logged == []


async def test_calls_without_a_token_make_few_lines_and_are_all_counted(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", "ada:read")
    access = AccessConfig(tokens=tmp_path / "tokens")
    with capture_logs() as logged:
        async with (
            daemon(tmp_path, access=access) as app,
            grpc.aio.insecure_channel(app.address) as channel,
        ):
            stub = job_pb2_grpc.JobServiceStub(channel)
            for _ in range(200):
                with pytest.raises(grpc.aio.AioRpcError):
                    await stub.ListJobs(job_pb2.ListJobsRequest())
            counted = app.registry.get_sample_value(
                "multigrain_requests_total",
                {"rpc": "JobService/ListJobs", "code": "UNAUTHENTICATED"},
            )
    assert counted == 200
    lines = [line for line in logged if line["event"] == "call"]
    assert 1 <= len(lines) <= 60, "5 every 10 seconds, however long 200 calls take"


async def test_counts_are_not_logged_as_those_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_limits, "_WINDOW_SECONDS", 0.01)
    found: list[dict[str, object]] = []
    reported = asyncio.Event()

    def processor(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        found.append(dict(event))
        reported.set()
        raise structlog.DropEvent

    merge = structlog.contextvars.merge_contextvars
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[merge, processor])
    monkeypatch.setattr(log_limits, "_log", log)
    with structlog.contextvars.bound_contextvars(request_id="of-one-call", token="me"):
        lines = FailedCallLines()
        while lines.allow("UNAUTHENTICATED", "10.0.0.1"):
            pass
    async with asyncio.timeout(10):
        await reported.wait()
    assert found[0]["calls"] == 1
    assert not {"request_id", "token"} & found[0].keys()
