"""What every test needs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# MindSpore 2.8's generated messages work only with protobuf's pure-Python implementation, which
# a process chooses once, at its first import of protobuf. No process of ours has both MindSpore
# and gRPC; pytest has. Child processes choose for themselves.
_VARIABLE = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
_before = os.environ.get(_VARIABLE)
os.environ[_VARIABLE] = "python"
from google.protobuf.internal import api_implementation  # noqa: E402

assert api_implementation.Type() == "python"
if _before is None:
    del os.environ[_VARIABLE]
else:
    os.environ[_VARIABLE] = _before


@pytest.fixture
def open_path() -> Iterator[Path]:
    """As ``tmp_path``, but every user may enter the folders above it (see tests.unprivileged)."""
    path = Path(tempfile.mkdtemp(prefix="multigrain-test-"))
    path.chmod(0o755)
    yield path
    for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
        folder.chmod(0o700)
    shutil.rmtree(path)
