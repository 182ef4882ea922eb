from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from multigrain_client import Client, RetryPolicy
from multigrain_client.cli import main
from tests.client.drivers import BlockingAsyncClient
from tests.client.fake_server import FakeServer, FakeState

QUICK = RetryPolicy(initial=0.001, maximum=0.01, stream_patience=5.0)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def state(server: FakeServer) -> FakeState:
    return server.state


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Creates blocking or asyncio clients and closes them after the test."""
    made: list[Any] = []
    kind = Client if request.param == "sync" else BlockingAsyncClient

    def make(target: str, **options: Any) -> Any:
        client = kind(target, **{"retry": QUICK, "timeout": 10.0, **options})
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: Any, server: FakeServer) -> Any:
    return make_client(server.address)


@pytest.fixture
def run(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs one command; returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("MULTIGRAIN_SERVER", server.address)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
