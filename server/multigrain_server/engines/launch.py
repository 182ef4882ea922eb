"""The process of an engine: how it is started, watched and killed, and what it prints."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from multigrain.engine.protocol import InFlightImage, InFlightSlots
from multigrain.engine.settings import EngineSettings
from multigrain.engine.shared_images import SharedImages
from multigrain.machine import THREAD_VARIABLES, Memory, cpus
from multigrain.memory import EXIT_OUT_OF_MEMORY, OomWatch, is_out_of_memory
from multigrain.processes import (
    child_environment,
    describe_signal,
    end_first_without_memory,
    explain_signal,
    needed_environment,
    python_command,
)
from multigrain_server.asyncio_utils import background_task
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.memory import engine_memory

_log = structlog.get_logger(__name__)

ENGINE_COMMAND: Final = python_command("multigrain.engine")
# A network reads hundreds of megabytes a batch: in pages of 2 MB it takes 4 to 7 % less time, as
# measured. Other C libraries than glibc ignore it, and an operator's own setting wins.
HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

_ROOT = Path("/")
_NO_HOME = "/nonexistent"
_MIB = 1 << 20
# An engine allocates more than it uses: two to three times as much, as measured.
_ALLOCATED = 4
_NO_OUTPUT = "(no output)"
_LINE_BYTES = 4096
# Output that is logged; an engine that somebody has taken over could fill the disk with more.
_LINES = 500
_WINDOW_SECONDS = 10.0
# Two folders at least: "and/or" and "/s" are no paths.
_FOLDERS = re.compile(r"(?<![\w./:-])/(?:[\w.+@~-]+/)+(?=[\w.+@~-])")


@dataclass(frozen=True)
class EngineSpec:
    """Which model an engine is started for, and how.

    Attributes:
        label: "name@version", for logs and messages.
        bundle: the bundle's folder.
        runtime: as in ``LoadModelRequest.runtime``.
        low_priority: load at a low priority, because requests are served meanwhile.
        environment: added to what it needs of the daemon's own; selects the leased device.
    """

    label: str
    bundle: Path
    runtime: str
    low_priority: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class EngineChild(ABC):
    """The process of an engine, apart from the messages to and from it.

    Attributes:
        socket: our end of its socket; whoever connects to it closes it.
        images: memory for large images; None = they are sent through the socket, too.
        ended: set when the process has ended, by itself or not.
        end_reason: then, how it ended.
        out_of_memory: then, whether it ended for lack of memory.
        maybe_out_of_memory: the same, or nothing says who killed it.
        last_output: then, the last line that it printed; "" if that cannot be the reason.
    """

    socket: socket.socket

    def __init__(self, images: SharedImages | None = None) -> None:
        self.images = images
        self.ended = asyncio.Event()
        self.end_reason = ""
        self.out_of_memory = False
        self.maybe_out_of_memory = False
        self.last_output = _NO_OUTPUT

    @property
    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def resident_bytes(self) -> int:
        """Memory that it and its decoder processes hold; 0 when it has ended."""

    @abstractmethod
    def processing(self) -> list[InFlightImage]:
        """Images that it computes now; after its end, those that it died with."""

    @abstractmethod
    def kill(self) -> None:
        """Kills it; ``ended`` is set when it has ended."""


#: Starts an engine. Raises OSError if the host cannot.
Launch = Callable[[EngineSpec, ServingConfig], Awaitable[EngineChild]]


class ChildProcess(EngineChild):
    """``python -m multigrain.engine``; made by :func:`launch`."""

    def __init__(
        self,
        label: str,
        process: asyncio.subprocess.Process,
        ours: socket.socket,
        inflight: InFlightSlots,
        images: SharedImages | None = None,
    ) -> None:
        super().__init__(images)
        self.socket = ours
        self._process = process
        self._inflight = inflight
        self._died_with: list[InFlightImage] = []
        self._log = _log.bind(model=label, pid=process.pid)
        self._killed = False
        self._window_start = -_WINDOW_SECONDS
        self._lines_left = 0
        self._left_out = 0
        self._oom_watch = OomWatch(process.pid)
        self._watch = background_task(self._follow())

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int:
        return engine_memory(self._process.pid)

    def processing(self) -> list[InFlightImage]:
        return self._died_with if self.ended.is_set() else self._inflight.images()

    def kill(self) -> None:
        if not self.ended.is_set():
            self._killed = True
            # The whole process group: a process that a library has started keeps the output
            # open, and the engine's end would not be noticed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _follow(self) -> None:
        assert self._process.stdout is not None
        await self._copy_output(self._process.stdout)
        code = await self._process.wait()
        self._died_with = self._inflight.images()
        self._inflight.close()
        if self.images is not None:
            self.images.close()
        end = EngineExit(
            code, self.last_output, self._killed, self._oom_watch.killed(), self._oom_watch.memory()
        )
        self.end_reason = str(end)
        self.out_of_memory = end.out_of_memory
        self.maybe_out_of_memory = end.maybe_out_of_memory
        if not end.has_reason_in_output:
            self.last_output = ""
        self.ended.set()

    async def _copy_output(self, stream: asyncio.StreamReader) -> None:
        """Logs each line, and remembers the last one, until the engine has ended."""
        rest = b""
        # In blocks: readline() fails at a line that is longer than its buffer.
        while block := await stream.read(64 * 1024):
            *lines, rest = (rest + block).split(b"\n")
            rest = rest[-_LINE_BYTES:]
            self._log_lines(lines)
        self._log_lines([rest])
        self._report_left_out()

    def _log_lines(self, lines: Sequence[bytes]) -> None:
        now = time.monotonic()
        if now - self._window_start >= _WINDOW_SECONDS:
            self._report_left_out()
            self._window_start, self._lines_left = now, _LINES
        logged, left_out = lines[: self._lines_left], lines[self._lines_left :]
        for line in logged:
            self._log_line(line)
        self._lines_left -= len(logged)
        self._left_out += len(left_out)
        last = next((line for line in reversed(left_out) if line.strip()), None)
        if last is not None:
            self.last_output = _printable(last)

    def _report_left_out(self) -> None:
        if self._left_out:
            self._log.warning("engine output left out", lines=self._left_out)
            self._left_out = 0

    def _log_line(self, raw: bytes) -> None:
        line = _printable(raw)
        if line:
            self.last_output = line
            self._log.info("engine output", line=line)


def _printable(raw: bytes) -> str:
    return raw[-_LINE_BYTES:].decode(errors="replace").rstrip()


async def launch(
    spec: EngineSpec,
    config: ServingConfig,
    command: Sequence[str] = ENGINE_COMMAND,
    folder: Path = _ROOT,
) -> EngineChild:
    """Starts an engine's process.

    Args:
        spec: the model, and how to run it.
        config: limits.
        command: starts an engine; its settings are appended.
        folder: its working folder, where only the daemon's user should be able to write:
            libraries look for files there, and write some.

    Raises:
        OSError: the host is short of memory, processes or open files.
    """
    found = cpus()
    # Libraries count the CPUs of the machine, not those of a container.
    threads = config.engine_threads or (found.available if found.limited else 0)
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads)) if found.limited else {}
    environment = {
        **HUGE_PAGES,
        **limits,
        **needed_environment(os.environ, config.engine_environment),
        **spec.environment,
    }
    if config.device == "cpu":
        # Drivers of accelerators keep compiled kernels there; the others need none.
        environment["HOME"] = _NO_HOME
    ours, theirs = socket.socketpair()
    settings = EngineSettings(
        bundle=spec.bundle.absolute(),
        socket_fd=theirs.fileno(),
        runtime=spec.runtime,
        device=config.device,
        threads=threads,
        decode_threads=config.decode_threads or found.available,
        decode_wall_seconds=config.engine_stall_seconds / 2,
        max_batch=config.max_batch,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        max_decode_bytes=config.max_decode_bytes,
        max_decode_seconds=config.max_decode_seconds,
        low_priority=spec.low_priority,
        sandbox=config.sandbox,
        memory_bytes=_ALLOCATED * config.memory_budget_mib * _MIB,
        parent_pid=os.getpid(),
    )
    try:
        with theirs, contextlib.ExitStack() as opened, contextlib.ExitStack() as failed:
            inflight_fd = InFlightSlots.allocate(settings.max_batch)
            opened.callback(os.close, inflight_fd)
            inflight = InFlightSlots(inflight_fd, settings.max_batch)
            passed = [theirs.fileno(), inflight_fd]
            images: SharedImages | None = None
            # Not every host has so many addresses for a file; then all goes through the socket.
            with contextlib.suppress(OSError):
                images = SharedImages()
                failed.callback(images.close)
                passed.append(images.engine_fd)
            settings = settings.model_copy(
                update={
                    "inflight_fd": inflight_fd,
                    "images_fd": -1 if images is None else images.engine_fd,
                }
            )
            process = await asyncio.create_subprocess_exec(
                *command,
                *settings.arguments(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=passed,
                env=child_environment(environment),
                cwd=folder,
                # A Ctrl-C in a terminal is for the daemon, which drains first.
                start_new_session=True,
            )
            failed.pop_all()
    except BaseException:
        ours.close()
        raise
    end_first_without_memory(process.pid)
    return ChildProcess(spec.label, process, ours, inflight, images)


@dataclass(frozen=True)
class EngineExit:
    """How the process of an engine ended.

    Attributes:
        code: as ``asyncio.subprocess`` has it: an exit code, or minus the number of a signal.
        last_output: the last line that it printed.
        stopped: the daemon has killed it.
        oom_killer: whether the kernel's OOM killer has ended a process; None = unknown.
        memory: what its cgroup may use.
    """

    code: int
    last_output: str = ""
    stopped: bool = False
    oom_killer: bool | None = None
    memory: Memory | None = None

    @property
    def by_kernel(self) -> bool:
        """Whether the OOM killer ended it."""
        return self.code == -signal.SIGKILL and not self.stopped and bool(self.oom_killer)

    @property
    def out_of_memory(self) -> bool:
        """Whether it ended for lack of memory."""
        if self.code == EXIT_OUT_OF_MEMORY or self.by_kernel:
            return True
        # Native code aborts, and an import fails, with the reason as the last line.
        return (
            self.code != 0
            and self.has_reason_in_output
            and is_out_of_memory(RuntimeError(self.last_output))
        )

    @property
    def maybe_out_of_memory(self) -> bool:
        """The same, or it was killed and the kernel does not count kills of its OOM killer."""
        unknown = self.code == -signal.SIGKILL and not self.stopped and self.oom_killer is None
        return self.out_of_memory or unknown

    @property
    def has_reason_in_output(self) -> bool:
        """Whether its output may say why it ended; SIGKILL and SIGTERM come without notice."""
        return self.code not in (-signal.SIGKILL, -signal.SIGTERM)

    def __str__(self) -> str:
        if self.by_kernel:
            allowed = f"; {self.memory.describe_limit()}" if self.memory is not None else ""
            return f"out of memory: killed by the kernel{allowed}"
        text = describe_exit(self.code)
        if self.code == -signal.SIGKILL and not self.stopped:
            text += ": from outside"
            if self.oom_killer is None:
                text += ", or by the kernel for lack of memory"
        return text


def describe_exit(code: int) -> str:
    """A return code of ``asyncio.subprocess`` as text."""
    if code == EXIT_OUT_OF_MEMORY:
        return "out of memory"
    if code >= 0:
        return f"exit code {code}"
    text = describe_signal(-code)
    meaning = explain_signal(-code)
    return f"{text}: {meaning}" if meaning else text


def redact_paths(text: str) -> str:
    """``text`` with ".../" in place of the folders of each absolute path.

    The last output of an engine may be a library's line about its own files. Callers need not
    learn how the machine is laid out; the log has the whole line.
    """
    return _FOLDERS.sub(".../", text)
