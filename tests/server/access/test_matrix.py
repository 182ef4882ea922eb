"""Every call of the server, made with every role: a new call without an entry here fails."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from multigrain_server.access.config import AccessConfig
from multigrain_server.access.policy import RULES, Role
from multigrain_server.app import App
from multigrain_server.grpc.inference import UNOFFERED
from tests.server.access.daemon import daemon, token_for_each_role

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Who may call what. An admin may call everything; "open" needs no token.
MATRIX = {
    "multigrain.v1.TrainingService": {"StartTraining": "train", "InspectDataset": "train"},
    "multigrain.v1.EvaluationService": {"StartEvaluation": "train"},
    "multigrain.v1.ExportService": {"StartExport": "train"},
    "multigrain.v1.JobService": {
        "GetJob": "train read",
        "ListJobs": "train read",
        "StreamEvents": "train read",
        "ListArtifacts": "train read",
        "GetArtifact": "train read",
        "CancelJob": "train",
        "ResumeJob": "train",
        "DeleteJob": "train",
    },
    "multigrain.v1.ModelService": {
        "ListModels": "infer train read index",
        "GetModel": "infer train read index",
        "DownloadModel": "train read",
        "LoadModel": "",
        "UnloadModel": "",
        "SetAlias": "",
        "DeleteModel": "",
        "ImportModel": "",
    },
    "multigrain.v1.EmbeddingService": {
        "Embed": "infer",
        "Classify": "infer",
        "EmbedStream": "infer",
    },
    "multigrain.v1.IndexService": {
        "GetIndex": "infer train read index",
        "ListIndexes": "infer train read index",
        "Search": "infer index",
        "GetItems": "infer index",
        "ScanItems": "infer index",
        **dict.fromkeys(("CreateIndex", "DeleteIndex", "SetIndexAlias"), "index"),
        **dict.fromkeys(("AddItems", "AddItemsStream", "UpdateItems", "DeleteItems"), "index"),
    },
    "inference.GRPCInferenceService": {
        "ServerLive": "open",
        "ServerReady": "open",
        "ModelReady": "infer train read index",
        "ServerMetadata": "infer train read index",
        "ModelMetadata": "infer train read index",
        "ModelConfig": "infer train read index",
        "ModelStatistics": "infer train read index",
        "RepositoryIndex": "infer train read index",
        "ModelInfer": "infer",
        "ModelStreamInfer": "infer",
        "RepositoryModelLoad": "",
        "RepositoryModelUnload": "",
        "SystemSharedMemoryStatus": "infer train read index",
        "SystemSharedMemoryRegister": "infer train read index",
        "SystemSharedMemoryUnregister": "infer train read index",
        "CudaSharedMemoryStatus": "infer train read index",
        "CudaSharedMemoryRegister": "infer train read index",
        "CudaSharedMemoryUnregister": "infer train read index",
        "TraceSetting": "infer train read index",
        "LogSettings": "infer train read index",
    },
    "grpc.health.v1.Health": {"Check": "open", "List": "open", "Watch": "open"},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": "infer train read index"},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": "infer train read index"},
}
EXPECTED = {
    f"/{service}/{call}": roles
    for service, calls in MATRIX.items()
    for call, roles in calls.items()
}
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@dataclass(frozen=True)
class Guarded:
    """A daemon with one token for each role."""

    app: App
    channel: grpc.aio.Channel
    tokens: dict[str, str]

    async def code(self, method: str, token: str | None, scheme: str = "Bearer") -> grpc.StatusCode:
        """The status of a call with an empty message, or an empty stream of them."""
        metadata = [] if token is None else [("authorization", f"{scheme} {token}")]
        shape = _shape(method)
        make = getattr(self.channel, shape)
        request = iter(()) if shape.startswith("stream") else b""
        call = make(method)(request, metadata=metadata, timeout=60)
        try:
            if shape.endswith("stream"):
                # Health's Watch never ends.
                if await call.read() is not grpc.aio.EOF:
                    call.cancel()
                    return grpc.StatusCode.OK
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return error.code()
        return await call.code()


def _shape(method: str) -> str:
    service, _, name = method[1:].partition("/")
    if name in UNOFFERED:
        return "unary_unary"
    found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return "_".join(
        "stream" if streams else "unary"
        for streams in (found.client_streaming, found.server_streaming)
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    root = tmp_path_factory.mktemp("guarded")
    tokens = token_for_each_role(root / "tokens.yaml")
    access = AccessConfig(tokens=root / "tokens.yaml")
    async with (
        daemon(root, access=access) as app,
        grpc.aio.insecure_channel(app.address) as channel,
    ):
        yield Guarded(app, channel, tokens)


async def test_every_method_has_an_access_rule(guarded: Guarded) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    metadata = [("authorization", f"Bearer {guarded.tokens['read']}")]
    answer = await stub.ServerReflectionInfo(iter([request]), metadata=metadata).read()
    served = {
        method.full_name
        for service in answer.list_services_response.service
        for method in descriptor_pool.Default().FindServiceByName(service.name).methods
    }
    served |= {f"inference.GRPCInferenceService.{name}" for name in UNOFFERED}
    named = {method[1:].replace("/", ".") for method in EXPECTED}
    assert served == named
    assert set(RULES) == set(EXPECTED)


@pytest.mark.parametrize("role", [role.value for role in Role])
async def test_each_role_may_call_its_methods_only(guarded: Guarded, role: str) -> None:
    codes = await asyncio.gather(
        *(guarded.code(method, guarded.tokens[role]) for method in EXPECTED)
    )
    wrong = {}
    for (method, roles), code in zip(EXPECTED.items(), codes, strict=True):
        may = role == "admin" or roles == "open" or role in roles.split()
        if may == (code in REFUSALS) or code is grpc.StatusCode.UNAUTHENTICATED:
            wrong[method] = code
        assert code is not grpc.StatusCode.INTERNAL
    assert wrong == {}


@pytest.mark.parametrize("token", [None, "", "mg_wrong", "x" * 5000])
async def test_only_health_checks_work_without_a_token(guarded: Guarded, token: str | None) -> None:
    codes = await asyncio.gather(*(guarded.code(method, token) for method in EXPECTED))
    for (method, roles), code in zip(EXPECTED.items(), codes, strict=True):
        assert (code is grpc.StatusCode.UNAUTHENTICATED) == (roles != "open"), method


async def test_scheme_is_bearer_in_any_case(guarded: Guarded) -> None:
    method, token = "/multigrain.v1.JobService/ListJobs", guarded.tokens["read"]
    assert await guarded.code(method, token, "bearer") is grpc.StatusCode.OK
    assert await guarded.code(method, token, "Basic") is grpc.StatusCode.UNAUTHENTICATED


async def test_the_hash_is_not_accepted_as_a_token(guarded: Guarded) -> None:
    assert guarded.app.config.access.tokens is not None
    text = guarded.app.config.access.tokens.read_text()
    hashes = re.findall(r'sha256: "(\w+)"', text)
    assert len(hashes) == len(Role)
    assert not any(token in text for token in guarded.tokens.values())
    for digest in hashes:
        code = await guarded.code("/multigrain.v1.JobService/ListJobs", digest)
        assert code is grpc.StatusCode.UNAUTHENTICATED
