"""What every test needs."""

from __future__ import annotations

import os

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
