"""A whole daemon in the test's process, with a fake runner, and a channel to it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from PIL import Image

from multigrain_server.app import App
from multigrain_server.config import JobsConfig, ServerConfig
from tests.server.jobs.conftest import FAKE_RUNNER
from tests.server.runners import runner_pids


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two class folders of two images each, below the daemon's data root ``tmp_path/images``."""
    root = tmp_path / "images" / "train"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
async def app(tmp_path: Path, dataset: Path) -> AsyncIterator[App]:
    config = ServerConfig(
        data_dir=tmp_path / "data",
        data_root=(tmp_path / "images",),
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        jobs=JobsConfig(poll_seconds=0.01, heartbeat_seconds=0.2, runner_restart_seconds=0.02),
    )
    app = App(config, FAKE_RUNNER)
    await app.start()
    yield app
    await app.stop()
    await app.close_connections()
    # Not before: the next job of the queue would be started.
    for pid in runner_pids(app):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def channel(app: App) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(app.address) as channel:
        yield channel
