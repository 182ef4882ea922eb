"""Streams of both APIs use the configured window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from multigrain_server.grpc import embedding, inference
from multigrain_server.serving.stream import RequestStream
from tests.server.grpc.serving import serving
from tests.server.serving.harness import small_config


@pytest.mark.parametrize(
    ("module", "stub", "call"),
    [
        (embedding, "embedding", "EmbedStream"),
        (inference, "inference", "ModelStreamInfer"),
    ],
)
async def test_streams_use_the_configured_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, stub: str, call: str
) -> None:
    windows: list[int] = []

    def made(service: Any, window: int) -> RequestStream[Any, Any]:
        windows.append(window)
        return RequestStream(service, window)

    monkeypatch.setattr(module, "RequestStream", made)
    async with serving(tmp_path, small_config(stream_window=3)) as served:
        stream = getattr(getattr(served, stub), call)()
        await stream.done_writing()
        assert [answer async for answer in stream] == []
    assert windows == [3]
