"""The examples in other languages print what the Python client computes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from multigrain_client import AsyncClient
from tests.engine.pictures import picture
from tests.server.http.daemon import Daemon, daemon
from tools.docs.markdown import ROOT

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]

EXAMPLES = ROOT / "examples"
PROGRAMS = {
    "node": ["node", str(EXAMPLES / "node" / "similar.mjs")],
    "node, gRPC": ["node", str(EXAMPLES / "node" / "grpc.mjs")],
    "java": ["java", str(EXAMPLES / "java" / "Similar.java")],
    "go": ["go", "run", str(EXAMPLES / "go" / "similar.go")],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    async with daemon(tmp_path_factory.mktemp("served")) as running:
        yield running


async def _run(name: str, served: Daemon, *paths: Path) -> tuple[int, str, str]:
    command = PROGRAMS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: make examples says what to install")
    if "gRPC" in name and not (EXAMPLES / "node" / "node_modules").is_dir():
        pytest.skip("packages of examples/node are not installed: make examples")
    process = await asyncio.create_subprocess_exec(
        *command,
        *map(str, paths),
        env=os.environ
        | {
            "MULTIGRAIN_HTTP": f"http://{served.app.http_address}",
            "MULTIGRAIN_SERVER": served.app.address,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize("name", PROGRAMS)
async def test_it_prints_what_the_python_client_computes(
    served: Daemon, tmp_path: Path, name: str
) -> None:
    paths = [tmp_path / f"{number}.png" for number in (1, 2)]
    for number, path in enumerate(paths):
        path.write_bytes(picture(number))
    code, output, errors = await _run(name, served, *paths)
    assert code == 0, errors
    async with AsyncClient(served.app.address) as client:
        a, b = await client.embed(paths)
        classes = await client.classify(paths, top_k=1)
    for path, (best,) in zip(paths, classes, strict=True):
        assert f"{path}: {best.label} {best.probability:.3f}" in output
    found = re.search(r"similarity ([-0-9.]+)", output)
    assert found is not None
    assert float(found[1]) == pytest.approx(float(a @ b), abs=1e-4)


@pytest.mark.parametrize("name", PROGRAMS)
async def test_it_says_what_is_wrong_with_an_image(
    served: Daemon, tmp_path: Path, name: str
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture(1))
    bad.write_bytes(b"no picture")
    code, _, errors = await _run(name, served, good, bad)
    assert code == 1
    assert "JPEG, PNG, WebP" in errors
