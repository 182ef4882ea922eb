"""Failed loads change nothing else."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.storage import describe
from multigrain_server import service_names
from multigrain_server.models.catalog import ModelView
from tests.engine.bundles import TinyNetwork
from tests.engine.pictures import picture
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import harness, small_config, until

pytestmark = pytest.mark.process


def state(view: ModelView) -> str:
    return view.state.value


async def test_a_canceled_load_leaves_nothing_behind(root: Path) -> None:
    before = set(psutil.Process().children())
    async with harness(root) as h:
        load = asyncio.create_task(h.manager.load("tiny@1"))
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "loading")
        await asyncio.sleep(0.05)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        assert state(h.manager.catalog.view("tiny@1")) == "unloaded"
        assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("damage", ["changed", "missing", "not finite", "not a graph"])
async def test_a_failed_load_changes_nothing_else(root: Path, damage: str) -> None:
    graph = root / "models/tiny/2/model.onnx"
    if damage == "changed":
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    elif damage == "missing":
        graph.unlink()
    else:
        network = TinyNetwork()
        network.bias[:] = np.nan
        network.save_onnx(graph)
        if damage == "not a graph":
            graph.write_bytes(b"hello")
        manifest = json.loads((root / "models/tiny/2/model.json").read_text())
        manifest["files"]["model.onnx"] = describe(graph).model_dump()
        (root / "models/tiny/2/model.json").write_text(json.dumps(manifest))
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        with pytest.raises(MultigrainError, match="tiny@2"):
            await h.manager.load("tiny@2", make_default=True)
        assert state(h.manager.catalog.view("tiny@2")) == "unloaded"
        assert (await h.embed(picture(1), model="tiny")).model == "tiny@1"
        assert h.manager.catalog.page().default_model == "tiny@1"
        assert h.health[service_names.EMBEDDING]


async def test_a_load_times_out(root: Path) -> None:
    async with harness(root, small_config(load_timeout_seconds=0.01)) as h:
        with pytest.raises(MultigrainError, match="did not load within") as caught:
            await h.manager.load("tiny@1")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert state(h.manager.catalog.view("tiny@1")) == "unloaded"


async def test_a_load_that_fails_while_the_daemon_stops_raises_its_own_error(root: Path) -> None:
    engines = FakeEngines()
    engines.may_start.clear()
    async with harness(root, launch=engines.launch) as h:
        load = asyncio.create_task(h.manager.load("tiny@1"))
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "loading")
        await h.close(0.0)
        engines.failures.append(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
        engines.may_start.set()
        with pytest.raises(MultigrainError, match="cannot be started") as caught:
            await load
        assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_a_load_that_succeeds_while_the_daemon_stops_leaves_no_engine(root: Path) -> None:
    engines = FakeEngines()
    engines.may_start.clear()
    async with harness(root, launch=engines.launch) as h:
        load = asyncio.create_task(h.manager.load("tiny@1"))
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "loading")
        await h.close(0.0)
        engines.may_start.set()
        with pytest.raises(MultigrainError, match="was unloaded while it was being loaded"):
            await load
        assert engines.children
        assert not engines.running
