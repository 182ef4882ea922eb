"""What an engine does when memory runs out: it ends, and the daemon starts the next one.

After a failed allocation a native library may be in any state, and a process that goes on would
fail image after image while it looks healthy. The keeper's trial of what was in work then tells an
image that no engine has room for from one that came at the wrong moment.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys

_LOG = logging.getLogger(__name__)
#: EX_OSERR of sysexits.h; the daemon says what it means.
EXIT_OUT_OF_MEMORY = 71
# How C++, CUDA, ONNX Runtime, OpenVINO and MindSpore say it.
_WORDS = ("bad_alloc", "out of memory", "cannot allocate memory", "failed to allocate memory")
# Less than a photograph takes while it is decoded.
_LITTLE_BYTES = 32 << 20


def end_if_out_of_memory(error: BaseException) -> None:
    """Ends the process if that is what the error says; else returns."""
    if _says_so(error):
        _end(error)


def end_if_nothing_is_left(error: BaseException) -> None:
    """Ends the process if the error says so and it is true; else returns.

    For decoders: a hostile file may ask for more than any machine has, and must not end an engine.
    """
    if not any(_says_so(part) for part in (error, error.__cause__) if part is not None):
        return
    try:
        mmap.mmap(-1, _LITTLE_BYTES).close()
    except OSError:
        _end(error)


def _says_so(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _WORDS)


def _end(error: BaseException) -> None:
    _LOG.error("out of memory: %s", str(error)[:200] or type(error).__name__)
    sys.stderr.flush()
    os._exit(EXIT_OUT_OF_MEMORY)
