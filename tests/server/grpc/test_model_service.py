"""ModelService over a real connection."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1 import model_pb2
from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain.v1.model_pb2 import (
    DeleteModelRequest,
    DownloadModelRequest,
    GetModelRequest,
    ImportModelRequest,
    ListModelsRequest,
    LoadModelRequest,
    SetAliasRequest,
    UnloadModelRequest,
)
from tests.engine.bundles import CLASSES, EMBEDDING, SIZE, write_bundle
from tests.engine.pictures import picture
from tests.server.grpc.serving import serving

pytestmark = pytest.mark.process


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


async def test_a_model_lists_its_resolutions_and_whitens_on_request(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models", also=16, whitened=True)
    async with serving(tmp_path) as s:
        model = await s.models.LoadModel(LoadModelRequest(model="tiny", make_default=True))
        found = [(r.resolution, r.whitened_size, r.whitening_images) for r in model.resolutions]
        assert found == [(SIZE, EMBEDDING + 1, 200), (16, 0, 0)]
        request = EmbedRequest(images=[picture(1)], whiten=True)
        vector = (await s.embedding.Embed(request)).results[0].embedding
        assert (vector.size, len(vector.data)) == (EMBEDDING + 1, 4 * (EMBEDDING + 1))
        request.resolution = 16
        with pytest.raises(grpc.aio.AioRpcError, match="no whitening at 16 px") as caught:
            await s.embedding.Embed(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_model_is_loaded_named_used_and_unloaded(root: Path) -> None:
    async with serving(root) as s:
        before = await s.models.GetModel(GetModelRequest(model="tiny"))
        assert before.state == model_pb2.MODEL_STATE_UNLOADED
        assert before.embedding_size == EMBEDDING
        assert before.classes == CLASSES
        assert before.resolution == SIZE
        assert before.labels[0] == "label 0"
        assert before.files["model.onnx"] > 0
        (only,) = before.resolutions
        assert (only.resolution, only.gem_p, only.whitened_size) == (SIZE, 3.0, 0)

        loaded = await s.models.LoadModel(LoadModelRequest(model="tiny", make_default=True))
        assert loaded.state == model_pb2.MODEL_STATE_READY
        assert loaded.runtime.startswith("openvino")
        assert loaded.load_seconds > 0
        assert loaded.max_batch_size == 8

        alias = await s.models.SetAlias(SetAliasRequest(alias="production", model="tiny"))
        assert alias.model == "tiny@1"
        answer = await s.embedding.Embed(EmbedRequest(model="production", images=[picture(1)]))
        assert answer.model == "tiny@1"

        listed = await s.models.ListModels(ListModelsRequest(loaded_only=True))
        assert [model.name for model in listed.models] == ["tiny"]
        assert dict(listed.aliases) == {"production": "tiny@1"}
        assert listed.default_model == "tiny@1"

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await s.models.UnloadModel(UnloadModelRequest(model="tiny"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await s.models.SetAlias(SetAliasRequest(alias="production"))
        unloaded = await s.models.UnloadModel(UnloadModelRequest(model="tiny"))
        assert unloaded.state == model_pb2.MODEL_STATE_UNLOADED
        await s.models.DeleteModel(DeleteModelRequest(model="tiny@1"))
        assert not (await s.models.ListModels(ListModelsRequest())).models


@pytest.mark.parametrize("size", [1, 1000, 2 * 1024 * 1024])
async def test_a_bundle_is_downloaded_and_imported(root: Path, size: int) -> None:
    async with serving(root) as s:
        chunks = [
            chunk async for chunk in s.models.DownloadModel(DownloadModelRequest(model="tiny"))
        ]
        content = b"".join(chunk.chunk for chunk in chunks)
        assert chunks[0].total_bytes == len(content)
        digest = chunks[-1].sha256
        assert digest == hashlib.sha256(content).hexdigest()

        async def upload() -> AsyncIterator[ImportModelRequest]:
            start = ImportModelRequest.Start(name="copy", sha256=digest)
            yield ImportModelRequest(start=start)
            step = max(size, len(content) // 50)
            for at in range(0, len(content), step):
                yield ImportModelRequest(chunk=content[at : at + step])

        model = await s.models.ImportModel(upload())
        assert (model.name, model.version) == ("copy", 1)
        assert model.state == model_pb2.MODEL_STATE_UNLOADED
        await s.models.LoadModel(LoadModelRequest(model="copy"))


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [ImportModelRequest(chunk=b"x")],
        [ImportModelRequest()],
        [ImportModelRequest(start=ImportModelRequest.Start())] * 2,
        [ImportModelRequest(start=ImportModelRequest.Start(name="../x"))],
    ],
)
async def test_a_malformed_upload_is_refused(root: Path, parts: list[ImportModelRequest]) -> None:
    async def upload() -> AsyncIterator[ImportModelRequest]:
        for part in parts:
            yield part

    async with serving(root) as s:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await s.models.ImportModel(upload())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "start" in (caught.value.details() or "")
        assert list((root / "models/.aside").glob("*")) == []


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("GetModel", GetModelRequest(model="none"), grpc.StatusCode.NOT_FOUND),
        ("GetModel", GetModelRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        ("LoadModel", LoadModelRequest(model="tiny@9"), grpc.StatusCode.NOT_FOUND),
        ("LoadModel", LoadModelRequest(model="tiny@x"), grpc.StatusCode.INVALID_ARGUMENT),
        (
            "LoadModel",
            LoadModelRequest(model="tiny", runtime="cuda"),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ("UnloadModel", UnloadModelRequest(model="none"), grpc.StatusCode.NOT_FOUND),
        (
            "SetAlias",
            SetAliasRequest(alias="a", model="tiny@1"),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        ("SetAlias", SetAliasRequest(model="tiny@1"), grpc.StatusCode.INVALID_ARGUMENT),
        ("DeleteModel", DeleteModelRequest(model="tiny"), grpc.StatusCode.INVALID_ARGUMENT),
        ("ListModels", ListModelsRequest(page_size=1001), grpc.StatusCode.INVALID_ARGUMENT),
        ("ListModels", ListModelsRequest(page_token="?"), grpc.StatusCode.INVALID_ARGUMENT),
        ("ListModels", ListModelsRequest(name="a b"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_an_invalid_request_gets_its_status(
    root: Path, method: str, request_: object, code: grpc.StatusCode
) -> None:
    async with serving(root) as s:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(s.models, method)(request_)
        assert caught.value.code() is code
        assert caught.value.details()
        assert str(root) not in (caught.value.details() or "")
