"""Callers do not learn how the server's machine is laid out."""

from __future__ import annotations

import asyncio

import pytest

from multigrain.engine.protocol import LoadFailed, encode
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.launch import redact_paths
from tests.server.engines.test_engine import DeafChild, start


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open '/usr/lib/x86_64/libcuda.so.1'", "cannot open '.../libcuda.so.1'"),
        ("/home/u/site-packages/onnx/core.cc:12 failed", ".../core.cc:12 failed"),
        ('File "/a b/c.py", line 3', 'File "/a b/c.py", line 3'),
        ("and/or 3/4, images/s, /metrics, https://example.org/a/b", None),
        ("model.onnx has sha256 ab/cd", None),
    ],
)
def test_only_the_last_part_of_a_path_is_shown(text: str, shown: str | None) -> None:
    assert redact_paths(text) == (text if shown is None else shown)


@pytest.mark.parametrize("fails", [True, False])
async def test_messages_of_a_failed_load_are_redacted(fails: bool) -> None:
    child = DeafChild()
    if fails:
        failed = LoadFailed(error=ErrorKind.CHECKPOINT, message="/opt/secret/a.onnx broke")
        child.theirs.send(encode(failed, 0))
    else:
        child.last_output = "OSError: /opt/secret/lib/libfoo.so: not found"
        asyncio.get_running_loop().call_later(0.05, child.kill)
    with pytest.raises(MultigrainError) as caught:
        await start(child)
    assert "secret" not in caught.value.message
    assert ".../" in caught.value.message
