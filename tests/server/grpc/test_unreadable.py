"""Bytes that are no message are the caller's mistake."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import pytest

from multigrain_server.app import App

INVALID_UTF8 = b"\x0a\x02\xff\xfe"  # of EmbedRequest.model


async def embed(channel: grpc.aio.Channel, data: bytes) -> None:
    await channel.unary_unary("/multigrain.v1.EmbeddingService/Embed")(data, timeout=60)


async def embed_stream(channel: grpc.aio.Channel, data: bytes) -> None:
    call = channel.stream_stream("/multigrain.v1.EmbeddingService/EmbedStream")
    async for _ in call(iter([data]), timeout=60):
        pass


@pytest.mark.parametrize("data", [b"\xff\xff\xff", INVALID_UTF8, b"\x0a\x7f"])
@pytest.mark.parametrize("call", [embed, embed_stream])
async def test_damaged_messages_are_refused_as_such(
    app: App,
    channel: grpc.aio.Channel,
    data: bytes,
    call: Callable[[grpc.aio.Channel, bytes], Awaitable[None]],
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot parse the request" in (caught.value.details() or "")
