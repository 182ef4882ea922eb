"""Imports and downloads by hostile clients, over a real connection."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from multigrain.bundle.folder import read, write_manifest
from multigrain.storage import describe
from multigrain.v1.model_pb2 import (
    DownloadModelRequest,
    DownloadModelResponse,
    ImportModelRequest,
    ListModelsRequest,
)
from tests.bundle.test_tar import END, HOSTILE, repaired
from tests.engine.bundles import write_bundle
from tests.server.grpc.serving import Serving, serving
from tests.server.serving.harness import small_config, until


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a model whose archive does not fit into the buffers of a connection."""
    folder = write_bundle(tmp_path / "models")
    (folder / "weights.safetensors").write_bytes(os.urandom(16 << 20))
    manifest = read(folder)
    files = {**manifest.files, "weights.safetensors": describe(folder / "weights.safetensors")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    return tmp_path


async def upload(s: Serving, content: bytes) -> grpc.StatusCode:
    async def parts() -> AsyncIterator[ImportModelRequest]:
        yield ImportModelRequest(start=ImportModelRequest.Start())
        for start in range(0, len(content), 1 << 20):
            yield ImportModelRequest(chunk=content[start : start + (1 << 20)])

    call = s.models.ImportModel(parts())
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def download(s: Serving) -> int:
    call = s.models.DownloadModel(DownloadModelRequest(model="tiny"))
    return sum([len(message.chunk) async for message in call])


async def drain(call: grpc.aio.UnaryStreamCall[Any, Any]) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def aside(root: Path) -> list[Path]:
    return list((root / "models/.aside").glob("*"))


async def test_no_archive_is_an_internal_error(root: Path) -> None:
    async with serving(root, small_config(max_bundle_bytes=64 << 20)) as s:
        for attack, content in HOSTILE.items():
            code = await upload(s, repaired(content) + END)
            assert code is grpc.StatusCode.INVALID_ARGUMENT, attack
        listed = await s.models.ListModels(ListModelsRequest())
        assert [model.name for model in listed.models] == ["tiny"]
        await until(lambda: not aside(root))


async def test_a_client_that_does_not_read_is_ended_and_others_are_served(root: Path) -> None:
    config = small_config(transfer_timeout_seconds=5.0, max_transfers_per_client=2)
    async with serving(root, config) as s:
        unread = [s.models.DownloadModel(DownloadModelRequest(model="tiny")) for _ in range(2)]
        for call in unread:
            first = await call.read()
            assert isinstance(first, DownloadModelResponse)
            assert first.total_bytes > 16 << 20
        with pytest.raises(grpc.aio.AioRpcError, match="max_transfers_per_client") as caught:
            await download(s)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Other calls are answered meanwhile, and the places of those that do not read come back.
        assert len((await s.models.ListModels(ListModelsRequest())).models) == 1
        assert aside(root) == []
        await until(lambda: s.manager.transfers.running == 0, seconds=60)
        assert await download(s) > 16 << 20
        for call in unread:
            with pytest.raises(grpc.aio.AioRpcError, match="took no data for 5 s") as ended:
                await drain(call)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_import_that_stops_is_ended_and_leaves_nothing(root: Path) -> None:
    async with serving(root, small_config(transfer_timeout_seconds=0.5)) as s:

        async def parts() -> AsyncIterator[ImportModelRequest]:
            yield ImportModelRequest(start=ImportModelRequest.Start())
            yield ImportModelRequest(chunk=b"x" * 1000)
            await asyncio.Event().wait()

        with pytest.raises(grpc.aio.AioRpcError, match=r"sent no data for 0\.5 s") as caught:
            await s.models.ImportModel(parts())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not aside(root))
        assert s.manager.transfers.running == 0


async def test_an_import_leaves_disk_space_to_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(root)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    async with serving(root) as s:
        assert await upload(s, b"x" * (1 << 20)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: not aside(root))
