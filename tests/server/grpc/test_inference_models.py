"""Names, readiness and the repository in the Open Inference Protocol."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from multigrain.v1.inference import model_pb2
from multigrain.v1.inference.service_pb2 import ModelReadyRequest, ServerReadyRequest
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture
from tests.server.grpc.inference_messages import files
from tests.server.grpc.refusal import refusal
from tests.server.grpc.serving import Serving, serving
from tests.server.serving.harness import small_config

pytestmark = pytest.mark.process

KEEP = small_config(keep_replaced_versions=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for version in (1, 2):
        write_bundle(tmp_path / "models", version=version)
    return tmp_path


async def _load(s: Serving, model: str, **fields: object) -> None:
    await s.inference.RepositoryModelLoad(
        model_pb2.RepositoryModelLoadRequest(model_name=model, **fields)
    )


async def _index(s: Serving, **fields: object) -> list[tuple[str, str, str]]:
    index = await s.inference.RepositoryIndex(model_pb2.RepositoryIndexRequest(**fields))
    return [(model.name, model.version, model.state) for model in index.models]


async def _ready(s: Serving, name: str, version: str = "") -> bool:
    return (await s.inference.ModelReady(ModelReadyRequest(name=name, version=version))).ready


async def _server_ready(s: Serving) -> bool:
    return (await s.inference.ServerReady(ServerReadyRequest())).ready


async def _answers(s: Serving, **fields: str) -> str:
    return (await s.inference.ModelInfer(files(picture(1), **fields))).model_version


async def test_models_are_loaded_and_unloaded_by_name_or_version(root: Path) -> None:
    async with serving(root, KEEP) as s:
        assert await _server_ready(s)  # for the load that comes
        assert await _index(s) == [("tiny", "1", "UNAVAILABLE"), ("tiny", "2", "UNAVAILABLE")]
        assert not await _ready(s, "tiny")
        assert not await _ready(s, "nothing")
        await _load(s, "tiny@1")
        await _load(s, "tiny")  # the newest
        assert await _index(s, ready=True) == [("tiny", "1", "READY"), ("tiny", "2", "READY")]
        assert await _ready(s, "tiny")
        assert await _ready(s, "tiny", "1")
        assert not await _ready(s, "tiny", "3")
        # Both loaded: a name means the newest.
        assert [await _answers(s, model_name="tiny"), await _answers(s)] == ["2", "2"]
        assert await _answers(s, model_name="tiny", model_version="1") == "1"
        statistics = await s.inference.ModelStatistics(model_pb2.ModelStatisticsRequest())
        counted = [(m.version, m.inference_count) for m in statistics.model_stats]
        assert counted == [("1", 1), ("2", 2)]
        request = model_pb2.RepositoryModelUnloadRequest(model_name="tiny")
        request.parameters["unload_dependents"].bool_param = True
        await s.inference.RepositoryModelUnload(request)
        assert await _index(s, ready=True) == []
        await s.inference.RepositoryModelUnload(request)  # harmless


async def test_an_alias_may_be_given_with_its_version(root: Path) -> None:
    async with serving(root, KEEP) as s:
        await _load(s, "tiny@1")
        await _load(s, "tiny@2")
        s.manager.set_alias("production", "tiny@1")
        response = await s.inference.ModelInfer(files(picture(1), model_name="production"))
        assert (response.model_name, response.model_version) == ("tiny", "1")
        assert await _answers(s, model_name="production", model_version="1") == "1"
        error = await refusal(_answers(s, model_name="production", model_version="2"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "alias of tiny@1" in error.details()
        unload = model_pb2.RepositoryModelUnloadRequest(model_name="tiny@1")
        error = await refusal(s.inference.RepositoryModelUnload(unload))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_server_without_its_default_model_or_that_stops_is_not_ready(root: Path) -> None:
    async with serving(root) as s:
        await _load(s, "tiny@1")
        assert await _server_ready(s)
        s.manager.catalog.route("").fail("its engine ended")
        assert not await _server_ready(s)
        assert not await _ready(s, "tiny")
        index = await s.inference.RepositoryIndex(model_pb2.RepositoryIndexRequest())
        assert index.models[0].reason == "its engine ended"
    async with serving(root) as s:
        s.accepting = False
        assert not await _server_ready(s)


@pytest.mark.parametrize(
    ("parameters", "code", "says"),
    [
        ({"config": {"string_param": "{}"}}, grpc.StatusCode.UNIMPLEMENTED, "ImportModel"),
        ({"file:1/model.onnx": {"bytes_param": b"x"}}, grpc.StatusCode.UNIMPLEMENTED, "bundle"),
        ({"runtime": {"string_param": "torch"}}, grpc.StatusCode.INVALID_ARGUMENT, "'torch'"),
        ({"runtime": {"int64_param": 1}}, grpc.StatusCode.INVALID_ARGUMENT, "string_param"),
        ({"device": {"string_param": "gpu"}}, grpc.StatusCode.INVALID_ARGUMENT, "'device'"),
    ],
)
async def test_a_load_has_no_parameter_but_the_runtime(
    tmp_path: Path, parameters: dict[str, dict[str, object]], code: grpc.StatusCode, says: str
) -> None:
    write_bundle(tmp_path / "models")
    async with serving(tmp_path) as s:
        error = await refusal(_load(s, "tiny", parameters=parameters))
        assert error.code() is code
        assert says in error.details()
        assert await _index(s, ready=True) == []


async def test_unknown_models_repositories_and_parameters_are_refused(root: Path) -> None:
    async with serving(root) as s:
        assert (await refusal(_load(s, "nothing"))).code() is grpc.StatusCode.NOT_FOUND
        assert (await refusal(_load(s, ""))).code() is grpc.StatusCode.INVALID_ARGUMENT
        error = await refusal(_load(s, "tiny", repository_name="other"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        unload = model_pb2.RepositoryModelUnloadRequest(model_name="tiny")
        unload.parameters["force"].bool_param = True
        error = await refusal(s.inference.RepositoryModelUnload(unload))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        unload = model_pb2.RepositoryModelUnloadRequest(model_name="nothing")
        error = await refusal(s.inference.RepositoryModelUnload(unload))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        await _load(s, "tiny", parameters={"runtime": {"string_param": "onnxruntime"}})
