"""One engine: a child process, its socket, and the images it has in work."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from multigrain.engine.settings import EngineSettings
from multigrain.engine.wire import (
    Cancel,
    Frame,
    Hold,
    LoadFailed,
    Ready,
    Result,
    Submit,
    VectorWants,
    WireError,
)
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.serving.config import ServingConfig
from multigrain_server.serving.engine_channel import EngineChannel
from multigrain_server.serving.engine_item import EngineResult, PendingItem
from multigrain_server.serving.engine_output import EngineOutput, describe_exit

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0


class EngineProcess:
    """Made by :meth:`start`; ends by :meth:`stop`, or by itself, which ``ended`` tells."""

    def __init__(
        self, label: str, config: ServingConfig, on_result: Callable[[Result], None]
    ) -> None:
        self._label = label
        self._config = config
        self._on_result = on_result
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[EngineResult]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._first: asyncio.Future[Ready | LoadFailed] = asyncio.get_running_loop().create_future()
        self._output = EngineOutput(label)
        self._process: asyncio.subprocess.Process | None = None
        self._channel: EngineChannel | None = None
        self._watch: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._stalled = False
        #: Set when the process has ended, by itself or not.
        self.ended = asyncio.Event()
        self.end_reason = ""
        self.ready: Ready | None = None

    @classmethod
    async def start(
        cls,
        label: str,
        bundle: Path,
        runtime: str,
        config: ServingConfig,
        on_result: Callable[[Result], None],
    ) -> EngineProcess:
        """Spawns an engine and waits until it answers.

        Args:
            label: "name@version", for logs and messages.
            bundle: its folder.
            runtime: "auto", "mindspore" or "onnxruntime".
            config: limits.
            on_result: called for each result, whether or not somebody still waits for it.

        Raises:
            MultigrainError: what the engine says, or UNAVAILABLE if it ends or takes too long.
        """
        engine = cls(label, config, on_result)
        try:
            await engine._spawn(bundle, runtime)
            async with asyncio.timeout(config.load_timeout_seconds):
                first = await engine._first
        except TimeoutError:
            await engine.stop()
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"{label} did not load within {config.load_timeout_seconds:g} s: raise "
                "serving.load_timeout_seconds, or look at the server's log",
            ) from None
        except OSError as error:
            await engine.stop()
            # Of interest to a caller that waits, and no reason for a keeper to give up.
            raise MultigrainError(
                ErrorKind.UNAVAILABLE,
                f"the engine of {label} cannot be started ({error.strerror}): the host is short "
                "of memory, processes or open files",
                retry_after=_RETRY_SECONDS,
            ) from error
        except BaseException:
            await engine.stop()
            raise
        if isinstance(first, LoadFailed):
            await engine.stop()
            raise MultigrainError(ErrorKind(first.kind), f"{label}: {first.message}")
        engine.ready = first
        engine._guard = asyncio.create_task(engine._guard_progress())
        return engine

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def pending(self) -> int:
        return len(self._pending)

    def submit(
        self,
        image: bytes,
        *,
        caller: int = 0,
        resolution: int,
        deadline_ns: int,
        vector: VectorWants | None,
        top_k: int,
        scores: bool = False,
        tensor: bool = False,
    ) -> PendingItem:
        """Sends one image. Its future fails with UNAVAILABLE if the engine ends first."""
        if self.ended.is_set() or self._channel is None:
            raise self._gone()
        number = next(self._ids)
        future: asyncio.Future[EngineResult] = asyncio.get_running_loop().create_future()
        if not self._pending:
            self._progress = time.monotonic()
        self._pending[number] = future
        self._idle.clear()
        message = Submit(
            id=number,
            caller=caller,
            resolution=resolution,
            deadline_ns=deadline_ns,
            vector=vector,
            top_k=top_k,
            scores=scores,
            tensor=tensor,
        )
        self._channel.send(message, image)
        return PendingItem(number, future)

    async def wait_idle(self) -> None:
        """Waits until no image is in work."""
        await self._idle.wait()

    async def drained(self) -> None:
        """Waits while the engine reads too slowly."""
        if self._channel is not None:
            await self._channel.drained()

    def cancel(self, item: PendingItem) -> None:
        """Tells the engine that nobody waits for the image any more."""
        if item.id in self._pending and self._channel is not None:
            self._channel.send(Cancel(id=item.id))

    def hold(self, items: int) -> None:
        """For tests: see :class:`multigrain.engine.wire.Hold`."""
        if self._channel is not None:
            self._channel.send(Hold(items=items))

    async def stop(self) -> None:
        """Ends the process; images in work fail with UNAVAILABLE."""
        if self._channel is not None:
            self._channel.close()
        if self._process is None:
            return
        try:
            async with asyncio.timeout(2):
                await self.ended.wait()
        except TimeoutError:
            self._kill()
            await self.ended.wait()

    async def _spawn(self, bundle: Path, runtime: str) -> None:
        config = self._config
        ours, theirs = socket.socketpair()
        settings = EngineSettings(
            bundle=bundle,
            socket_fd=theirs.fileno(),
            runtime=runtime,
            device=config.device,
            threads=config.engine_threads,
            decode_threads=config.decode_threads or os.cpu_count() or 1,
            max_batch=config.max_batch,
            max_image_bytes=config.max_image_bytes,
            max_image_pixels=config.max_image_pixels,
            parent_pid=os.getpid(),
        )
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "multigrain.engine", *settings.arguments()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    # A Ctrl-C in a terminal is the daemon's to handle: it drains first.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self._watch = asyncio.create_task(self._follow(self._process))
        _, self._channel = await asyncio.get_running_loop().create_unix_connection(
            lambda: EngineChannel(self._max_payload(), self._received, self._closed), sock=ours
        )

    def _max_payload(self) -> int:
        # A vector and the scores of all classes; far above any network's.
        return 64 * 1024 * 1024

    def _received(self, frame: Frame) -> None:
        match frame.message:
            case Result() as result:
                self._progress = time.monotonic()
                future = self._pending.pop(result.id, None)
                if not self._pending:
                    self._idle.set()
                self._on_result(result)
                # A caller that was cancelled has a future that is done: nobody is waiting.
                if future is not None and not future.done():
                    future.set_result(EngineResult(result, frame.payload))
            case Ready() | LoadFailed() as first:
                if not self._first.done():
                    self._first.set_result(first)
            case _:
                raise WireError(f"a daemon takes no {type(frame.message).__name__}")

    def _closed(self, error: WireError | None) -> None:
        if error is not None:
            _LOG.error("engine of %s broke the protocol: %s", self._label, error)
        # Without its socket an engine is of no use; a healthy one is exiting by itself.
        asyncio.get_running_loop().call_later(1.0, self._kill)

    def _kill(self) -> None:
        if self._process is not None and not self.ended.is_set():
            # With its group: what a library has started keeps the output open, and the end
            # would not be noticed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _guard_progress(self) -> None:
        """Ends an engine that has images in work and answers none: a hang inside a library
        would otherwise look like a healthy server for ever."""
        limit = self._config.engine_stall_seconds
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            if self._pending and time.monotonic() - self._progress > limit:
                self._stalled = True
                self._kill()
                return

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Waits for the engine's end, then fails what it had."""
        assert process.stdout is not None
        await self._output.copy(process.stdout)
        code = await process.wait()
        self.end_reason = describe_exit(code)
        if self._stalled:
            self.end_reason = (
                f"it answered nothing for {self._config.engine_stall_seconds:g} s and was killed"
            )
        if self._guard is not None:
            self._guard.cancel()
        self.ended.set()
        if self._channel is not None:
            self._channel.close()
        if not self._first.done():
            self._first.set_exception(
                MultigrainError(
                    ErrorKind.UNAVAILABLE,
                    f"the engine of {self._label} ended while loading ({self.end_reason}); "
                    f"its last words: {self._output.last_line[:500]}",
                )
            )
            # Also read when nobody waits for it any more (stop during a load).
            self._first.exception()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._gone())
                future.exception()
        self._pending.clear()
        self._idle.set()

    def _gone(self) -> MultigrainError:
        return MultigrainError(
            ErrorKind.UNAVAILABLE,
            f"the engine of {self._label} ended ({self.end_reason or 'closing'}) and is being "
            "replaced: try again",
            retry_after=_RETRY_SECONDS,
        )
