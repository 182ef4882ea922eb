"""What an engine writes, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import signal

from multigrain.engine.exhaustion import EXIT_OUT_OF_MEMORY

_LOG = logging.getLogger(__name__)
_LINE_BYTES = 4096


class EngineOutput:
    """Copies an engine's output to the log and remembers the last line of it."""

    def __init__(self, label: str) -> None:
        self._label = label
        self.last_line = "it wrote nothing"

    async def copy(self, stream: asyncio.StreamReader) -> None:
        """Reads until the engine has ended."""
        rest = b""
        # By blocks: a reader by lines stops at one that is longer than its buffer.
        while block := await stream.read(64 * 1024):
            *lines, rest = (rest + block).split(b"\n")
            rest = rest[-_LINE_BYTES:]
            for line in lines:
                self._note(line)
        self._note(rest)

    def _note(self, raw: bytes) -> None:
        line = raw[-_LINE_BYTES:].decode(errors="replace").rstrip()
        if line:
            self.last_line = line
            _LOG.info("engine %s: %s", self._label, line)


def describe_exit(code: int) -> str:
    """A return code of ``asyncio.subprocess`` in words."""
    if code == EXIT_OUT_OF_MEMORY:
        return "out of memory"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
