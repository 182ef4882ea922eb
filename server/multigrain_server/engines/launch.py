"""Texts of libraries, without the places where they are installed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from multigrain.engine.inflight import InFlightImage, InFlightSlots
from multigrain.engine.settings import EngineSettings
from multigrain.memory import EXIT_OUT_OF_MEMORY
from multigrain_server.serving.config import ServingConfig

# Two folders at least: "and/or" and "/s" are no paths.
_FOLDERS = re.compile(r"(?<![\w./:-])/(?:[\w.+@~-]+/)+(?=[\w.+@~-])")


def without_folders(text: str) -> str:
    """The same with ".../" before the last part of each absolute path.

    What an engine says of its end may be a library's line about its own files; callers need not
    learn how the machine is laid out, and the log has the whole.
    """
    return _FOLDERS.sub(".../", text)


# MERGED: What an engine writes, and how it ended.


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


# MERGED: The process of an engine: started, watched, ended.


# A network reads hundreds of megabytes a batch: in pages of 2 MB it takes 4 to 7 % less time, as
# measured. Other C libraries than glibc ignore it, and an operator's own setting wins.
HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
ENGINE_COMMAND: Final = (sys.executable, "-m", "multigrain.engine")


@dataclass(frozen=True)
class EngineOrder:
    """What an engine is started for.

    Attributes:
        label: "name@version", for logs and messages.
        bundle: its folder.
        runtime: as in ``LoadModelRequest.runtime``.
        background: load it at a low priority: requests are served by others meanwhile.
        environment: added to the daemon's own; shows the leased device.
    """

    label: str
    bundle: Path
    runtime: str
    background: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class EngineChild(ABC):
    """An engine that was started, before anything is said to it."""

    #: Our end of its socket; whoever takes it closes it.
    socket: socket.socket

    def __init__(self) -> None:
        #: Set when it has ended, by itself or not.
        self.ended = asyncio.Event()
        #: Then: how, in words.
        self.end_reason = ""
        self.last_words = "it wrote nothing"

    @property
    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def resident_bytes(self) -> int:
        """Memory that it holds; 0 when it has ended."""

    @abstractmethod
    def held(self) -> list[InFlightImage]:
        """Images in its hands; after its end, those that it died with."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once; ``ended`` tells when that is done."""


#: Starts an engine. Raises OSError if the host cannot.
Launch = Callable[[EngineOrder, ServingConfig], Awaitable[EngineChild]]


class ChildProcess(EngineChild):
    """``python -m multigrain.engine``; made by :func:`launch`."""

    def __init__(
        self,
        label: str,
        process: asyncio.subprocess.Process,
        ours: socket.socket,
        inflight: InFlightSlots,
    ) -> None:
        super().__init__()
        self.socket = ours
        self._process = process
        self._inflight = inflight
        self._died_with: list[InFlightImage] = []
        self._output = EngineOutput(label)
        self._watch = asyncio.create_task(self._follow())

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def held(self) -> list[InFlightImage]:
        return self._died_with if self.ended.is_set() else self._inflight.images()

    def kill(self) -> None:
        if not self.ended.is_set():
            # With its group: what a library has started keeps the output open, and the end
            # would not be noticed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _follow(self) -> None:
        assert self._process.stdout is not None
        await self._output.copy(self._process.stdout)
        code = await self._process.wait()
        self._died_with = self._inflight.images()
        self._inflight.close()
        self.end_reason = describe_exit(code)
        self.last_words = self._output.last_line
        self.ended.set()


async def launch(
    order: EngineOrder, config: ServingConfig, command: Sequence[str] = ENGINE_COMMAND
) -> EngineChild:
    """Starts an engine's process.

    Args:
        order: what it is started for.
        config: its limits.
        command: starts an engine; its settings are appended.

    Raises:
        OSError: the host is short of memory, processes or open files.
    """
    ours, theirs = socket.socketpair()
    settings = EngineSettings(
        bundle=order.bundle,
        socket_fd=theirs.fileno(),
        runtime=order.runtime,
        device=config.device,
        threads=config.engine_threads,
        decode_threads=config.decode_threads or os.cpu_count() or 1,
        max_batch=config.max_batch,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        low_priority=order.background,
        parent_pid=os.getpid(),
    )
    try:
        with theirs:
            inflight_fd = InFlightSlots.allocate(settings.slots)
            try:
                inflight = InFlightSlots(inflight_fd, settings.slots)
                settings = settings.model_copy(update={"inflight_fd": inflight_fd})
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *settings.arguments(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(), inflight_fd),
                    env={**HUGE_PAGES, **os.environ, **order.environment},
                    # A Ctrl-C in a terminal is the daemon's to handle: it drains first.
                    start_new_session=True,
                )
            finally:
                os.close(inflight_fd)
    except BaseException:
        ours.close()
        raise
    return ChildProcess(order.label, process, ours, inflight)
