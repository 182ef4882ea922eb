"""Callers do not learn how the server's machine is laid out."""

from __future__ import annotations

import pytest

from multigrain.engine.protocol import LoadFailed
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.engine import EngineHello
from multigrain_server.engines.launch import without_folders


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
    assert without_folders(text) == (text if shown is None else shown)


async def test_what_an_engine_says_of_its_end_is_shown_like_that() -> None:
    ended, failed = EngineHello("tiny@1", 60), EngineHello("tiny@1", 60)
    ended.ended("exit code 1", "OSError: /opt/secret/lib/libfoo.so: not found")
    failed.received(LoadFailed(error=ErrorKind.CHECKPOINT, message="/opt/secret/a.onnx broke"))
    for hello in (ended, failed):
        with pytest.raises(MultigrainError) as caught:
            await hello.ready()
        assert "secret" not in caught.value.message
        assert ".../" in caught.value.message
