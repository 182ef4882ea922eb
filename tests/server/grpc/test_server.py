"""The options of the gRPC server: message size, connection age, streams per connection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from multigrain.v1 import embedding_pb2
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain.v1.model_pb2 import ListModelsRequest
from multigrain_server.config import GrpcConfig
from multigrain_server.grpc.server import build_server
from tests.engine.bundles import write_bundle
from tests.engine.held import hold
from tests.engine.pictures import picture
from tests.raw_http2 import Connection
from tests.server.grpc.serving import serving


@pytest.mark.process
async def test_images_above_the_grpc_default_of_4_mib_are_accepted(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    large = picture(1, size=(1300, 1300), kind="BMP")
    assert len(large) > 4 << 20
    async with serving(tmp_path) as served:
        await served.manager.load("tiny")
        async with grpc.aio.insecure_channel(served.address) as channel:
            request = embedding_pb2.EmbedRequest(images=[large])
            answer = await EmbeddingServiceStub(channel).Embed(request)
    assert answer.results[0].status.code == 0
    assert answer.results[0].embedding.size == 16


@pytest.mark.process
async def test_connection_age_closes_connections_and_not_calls(tmp_path: Path) -> None:
    """Callers that stay connected for ever would never reach a replica that came later."""
    write_bundle(tmp_path / "models")
    request = embedding_pb2.EmbedRequest(images=[picture(1)])
    config = GrpcConfig(max_connection_age_seconds=1.0, connection_grace_seconds=60.0)
    async with serving(tmp_path, grpc_config=config) as served:
        await served.manager.load("tiny")
        engine = served.manager.catalog.route("").engine
        await served.embedding.Embed(request)
        hold(engine, 2)
        under_way = served.embedding.Embed(request)
        ready = grpc.ChannelConnectivity.READY
        async with asyncio.timeout(60):
            while served.channel.get_state() is ready:
                await served.channel.wait_for_state_change(ready)
            # Over a new connection; together with the one that has waited in the old one.
            answers = [await served.embedding.Embed(request), await under_way]
    assert [answer.results[0].embedding.size for answer in answers] == [16, 16]


async def test_max_concurrent_streams_per_connection(tmp_path: Path) -> None:
    config = GrpcConfig(max_concurrent_streams=1)
    async with serving(tmp_path, grpc_config=config) as served:
        list_models = served.models.ListModels
        await list_models(ListModelsRequest())
        open_call = served.embedding.EmbedStream()
        await open_call.wait_for_connection()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await list_models(ListModelsRequest(), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        open_call.cancel()
        await list_models(ListModelsRequest(), timeout=60)


# gRPC has no such limit: tests/server/grpc/test_connections.py
OWN = {"max_connections_per_host"}


@pytest.mark.parametrize("field", [name for name in GrpcConfig.model_fields if name not in OWN])
def test_every_option_reaches_grpc(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, int]] = []
    monkeypatch.setattr(
        grpc.aio, "server", lambda interceptors, options: made.append(dict(options))
    )
    age = {"max_connection_age_seconds": 7.0}
    for fields in (age, {**age, field: 11}):
        build_server(GrpcConfig(**fields), [])
    assert made[0] != made[1]


async def test_a_client_may_send_a_mebibyte_per_round_trip() -> None:
    """With less, a client on another continent sends images ten times as slowly as it could; with
    much more, callers without a token cost memory."""
    called = asyncio.Event()

    async def never_reads(_messages: object, _context: object) -> bytes:
        called.set()
        await asyncio.Event().wait()
        return b""

    server = build_server(GrpcConfig(), [])
    method = grpc.stream_unary_rpc_method_handler(never_reads)
    handler = grpc.method_handlers_generic_handler("test", {"Upload": method})
    server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        with Connection(address) as connection:
            connection.open(1, "/test/Upload")
            async with asyncio.timeout(10):
                await called.wait()
            sent = await asyncio.to_thread(connection.send_message, 1, 8 << 20, seconds=1.0)
    finally:
        await server.stop(grace=0)
    assert 1 << 20 <= sent <= 2 << 20
