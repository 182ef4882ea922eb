"""Who a call comes from, for every call that carries images."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1 import embedding_pb2, embedding_pb2_grpc
from multigrain.v1.inference import service_pb2_grpc
from multigrain_server.access.client import host
from multigrain_server.access.config import AccessConfig
from multigrain_server.app import App
from multigrain_server.engines.images import ImageRequest
from tests.server.access.daemon import daemon, write_tokens
from tests.server.grpc.inference_messages import files


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.1:50123", "10.0.0.1"),
        ("ipv6:%5B::1%5D:50123", "[::1]"),
        ("ipv6:[::1]:50123", "[::1]"),
        ("ipv6:[fd00::5]:50123", "[fd00::5]"),
        ("ipv6:[2600:1f18:1:2:3:4:5:6]:50123", "[2600:1f18:1:2::/64]"),
        ("ipv6:[::ffff:10.0.0.1]:50123", "10.0.0.1"),
        ("unix:", "unix"),
        ("unix:/run/multigrain.sock", "unix"),
        ("", "unix"),
    ],
)
def test_a_host_is_a_peer_without_its_port(peer: str, expected: str) -> None:
    assert host(peer) == expected


Call = Callable[[grpc.aio.Channel, grpc.aio.Metadata], Awaitable[object]]


async def embed(channel: grpc.aio.Channel, metadata: grpc.aio.Metadata) -> object:
    stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
    return await stub.Embed(embedding_pb2.EmbedRequest(images=[b"x"]), metadata=metadata)


async def classify(channel: grpc.aio.Channel, metadata: grpc.aio.Metadata) -> object:
    stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
    return await stub.Classify(embedding_pb2.ClassifyRequest(images=[b"x"]), metadata=metadata)


async def embed_stream(channel: grpc.aio.Channel, metadata: grpc.aio.Metadata) -> object:
    stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
    request = embedding_pb2.EmbedRequest(images=[b"x"])
    return [reply async for reply in stub.EmbedStream(once(request), metadata=metadata)]


async def infer(channel: grpc.aio.Channel, metadata: grpc.aio.Metadata) -> object:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    return await stub.ModelInfer(files(b"x"), metadata=metadata)


async def infer_stream(channel: grpc.aio.Channel, metadata: grpc.aio.Metadata) -> object:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    replies = stub.ModelStreamInfer(once(files(b"x")), metadata=metadata)
    return [reply async for reply in replies]


async def once(message: object) -> AsyncIterator[object]:
    yield message


# Channels to the same address share a connection otherwise.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
CALLS = [embed, classify, embed_stream, infer, infer_stream]


def record(app: App) -> list[ImageRequest]:
    """Fails all images from now on, and records their requests."""
    found: list[ImageRequest] = []

    async def refuse(request: ImageRequest) -> None:
        found.append(request)
        raise MultigrainError(ErrorKind.NOT_FOUND, "no model")

    app.images.infer = refuse  # type: ignore[method-assign, assignment]
    return found


@pytest.mark.parametrize("call", CALLS)
async def test_images_are_counted_for_the_token_that_sent_them(tmp_path: Path, call: Call) -> None:
    tokens = write_tokens(tmp_path / "tokens", "ada:infer", "bob:infer")
    async with daemon(tmp_path, access=AccessConfig(tokens=tmp_path / "tokens")) as app:
        requests = record(app)
        for name in ("ada", "bob"):
            async with grpc.aio.insecure_channel(app.address, OWN_CONNECTION) as channel:
                metadata = grpc.aio.Metadata(("authorization", f"Bearer {tokens[name]}"))
                try:
                    await call(channel, metadata)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017
    assert [request.client for request in requests] == ["ada", "bob"]
    assert len({request.connection for request in requests}) == 2


@pytest.mark.parametrize("call", CALLS)
async def test_images_are_counted_for_the_host_where_there_are_no_tokens(
    tmp_path: Path, call: Call
) -> None:
    async with daemon(tmp_path) as app:
        requests = record(app)
        async with grpc.aio.insecure_channel(app.address) as channel:
            try:
                await call(channel, grpc.aio.Metadata())
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017
    (request,) = requests
    assert request.client == "127.0.0.1"
    assert request.connection.startswith("ipv4:127.0.0.1:")
