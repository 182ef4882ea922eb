"""Calls with very many metadata entries."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from multigrain_server.grpc.metadata_limit import MAX_ENTRIES, limit_metadata
from tests.raw_http2 import PREFACE, headers, many_headers, settings

METHOD = "/test.Service/Call"


class _Seen(grpc.aio.ServerInterceptor):
    """Notes how many metadata entries calls have."""

    def __init__(self) -> None:
        self.entries: list[int] = []

    async def intercept_service(self, continuation, handler_call_details):  # type: ignore[no-untyped-def]
        self.entries.append(len(handler_call_details.invocation_metadata))
        return await continuation(handler_call_details)


class Served:
    """A server whose calls have a limit."""

    def __init__(self) -> None:
        self.seen = _Seen()
        self.ended = 0
        self.port = 0

    def count(self) -> None:
        self.ended += 1


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(cygrpc, "_Metadatum", cygrpc._Metadatum)  # restored afterwards
    made = Served()
    assert limit_metadata(made.count), "grpc.aio makes metadata in another way"
    # Up to so much, gRPC refuses no call at random.
    options = [("grpc.max_metadata_size", 1 << 20)]
    server = grpc.aio.server(interceptors=[made.seen], options=options)

    async def answer(request: bytes, _: object) -> bytes:
        return request

    handlers: dict[str, Any] = {"Call": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", handlers),)
    )
    made.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made
    await server.stop(None)


async def test_a_call_with_very_many_headers_is_ended_before_they_are_copied(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """They come before the client has acknowledged the settings: gRPC has no limit then."""
    with caplog.at_level(logging.DEBUG), socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", served.port))
        data = PREFACE + settings() + headers(1, many_headers(METHOD, 20_000))
        await loop.sock_sendall(sock, data)
        async with asyncio.timeout(20):
            # The call is answered, so that nothing of it is kept.
            received = b""
            while b"at most 512 metadata entries" not in received:
                received += await loop.sock_recv(sock, 65536)
    assert served.ended == 1
    assert served.seen.entries == []
    assert not [record for record in caplog.records if record.exc_info]


async def test_other_calls_are_answered_however_many_there_are(served: Served) -> None:
    metadata = tuple((f"x-{number}", "v") for number in range(100))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        call: Any = channel.unary_unary(METHOD)
        for number in range(40):
            request = str(number).encode()
            assert await call(request, metadata=metadata) == request
    assert len(served.seen.entries) == 40
    assert all(100 <= entries < MAX_ENTRIES for entries in served.seen.entries)
    assert served.ended == 0
