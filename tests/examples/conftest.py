"""A fake server for the examples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.fake_server import FakeServer, FakeState


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def state(server: FakeServer) -> FakeState:
    return server.state
