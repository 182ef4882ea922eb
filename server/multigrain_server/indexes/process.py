"""The index process as the daemon sees it: started when needed, replaced when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.index.protocol import (
    Answer,
    Failed,
    Parser,
    Request,
    WireError,
    decode_answer,
    encode,
)
from multigrain.processes import child_environment, needed_environment, python_command
from multigrain_server.asyncio_utils import background_task
from multigrain_server.backoff import Backoff

_log = structlog.get_logger(__name__)

COMMAND = python_command("multigrain.index")

A = TypeVar("A")
_READ_BYTES = 1 << 20
_STOP_SECONDS = 5.0
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.5, 30.0
_LINE_BYTES = 4096


class IndexProcess:
    """Sends requests to the index process; starts it with the first one.

    If it ends by itself, the requests that it had fail with UNAVAILABLE, and the next request
    starts another one.

    Args:
        folder: of the indexes.
        command: starts the process; its settings are appended.
    """

    def __init__(self, folder: Path, command: Sequence[str] = COMMAND) -> None:
        self._folder = folder.absolute()
        self._command = command
        self._ids = itertools.count(1)
        self._starting = asyncio.Lock()
        self._connection: _Connection | None = None
        self._backoff = Backoff(_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS)
        self._not_before = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id; None while there is none."""
        return self._connection.process.pid if self._connection is not None else None

    async def call(
        self, make: Callable[[int], Request], answer: type[A], payload: bytes = b""
    ) -> tuple[A, bytes]:
        """Makes a request and returns its answer.

        Args:
            make: makes the request with its id.
            answer: the class of the answer.
            payload: vectors of the request, little-endian float32.

        Raises:
            MultigrainError: the request's; UNAVAILABLE if the process ended meanwhile.
        """
        connection = await self._connected()
        number = next(self._ids)
        message, numbers = await connection.request(number, make(number), payload)
        if isinstance(message, Failed):
            if message.field:
                raise MultigrainError.field(
                    message.field, message.message.removeprefix(f"{message.field}: ")
                )
            raise MultigrainError(message.kind, message.message)
        if not isinstance(message, answer):
            raise MultigrainError(ErrorKind.INTERNAL, f"unexpected {type(message).__name__}")
        return message, numbers

    async def close(self) -> None:
        """Ends the process."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def _connected(self) -> _Connection:
        async with self._starting:
            found = self._connection
            if found is not None and not found.ended:
                return found
            now = asyncio.get_running_loop().time()
            if self._closed or now < self._not_before:
                raise MultigrainError(
                    ErrorKind.UNAVAILABLE,
                    "the index process has ended and is started again in a moment: try again",
                    retry_after=max(0.1, self._not_before - now),
                )
            self._not_before = now + self._backoff.next()
            try:
                self._connection = await _Connection.start(self._folder, self._command)
            except OSError as error:
                raise MultigrainError(
                    ErrorKind.UNAVAILABLE,
                    f"the index process cannot be started: {error.strerror or error}",
                    retry_after=self._backoff.delay,
                ) from error
            self._connection.on_answer = self._backoff.reset
            return self._connection


class _Connection:
    """One process and the requests that it has."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.ended = False
        self._closing = False
        self.on_answer: Callable[[], None] = lambda: None
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[tuple[Answer, bytes]]] = {}
        self._log = _log.bind(pid=process.pid)
        self._tasks = (background_task(self._read()), background_task(self._copy_output()))

    @classmethod
    async def start(cls, folder: Path, command: Sequence[str]) -> _Connection:
        """Starts a process. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *("--folder", str(folder)),
                    *("--socket-fd", str(theirs.fileno())),
                    *("--parent-pid", str(os.getpid())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env=child_environment(needed_environment(os.environ, {})),
                    cwd=folder.parent,
                    # A Ctrl-C in a terminal is for the daemon, which drains first.
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        reader, writer = await asyncio.open_connection(sock=ours)
        _log.info("index process started", pid=process.pid)
        return cls(process, reader, writer)

    async def request(self, number: int, message: Request, payload: bytes) -> tuple[Answer, bytes]:
        """Sends a request and waits for its answer. Raises MultigrainError."""
        try:
            frame = encode(message, payload)
        except WireError as error:
            raise MultigrainError(
                ErrorKind.INVALID_FIELD, f"the request is too large: {error}"
            ) from None
        if self.ended:
            raise _ended()
        future: asyncio.Future[tuple[Answer, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._writer.write(frame)
            with contextlib.suppress(ConnectionError):  # the reader fails the future
                await self._writer.drain()
            return await future
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Ends the process: it exits when its socket is closed."""
        self._closing = True
        self._writer.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self._kill()
            await self.process.wait()

    async def _read(self) -> None:
        parser = Parser()
        try:
            while data := await self._reader.read(_READ_BYTES):
                for header, payload in parser.feed(data):
                    answer = decode_answer(header)
                    future = self._waiting.pop(answer.id, None)
                    if future is not None and not future.done():
                        future.set_result((answer, payload))
                    self.on_answer()
        except (WireError, ConnectionError) as error:
            self._log.error("index process answers nonsense", reason=str(error))
        finally:
            self.ended = True
            if not self._closing:
                self._kill()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_ended())
                    future.exception()  # nobody may be waiting for it any more

    async def _copy_output(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        while block := await self.process.stdout.read(1 << 16):
            *lines, rest = (rest + block).split(b"\n")
            rest = rest[-_LINE_BYTES:]
            for line in lines:
                text = line[-_LINE_BYTES:].decode(errors="replace").rstrip()
                if text:
                    self._log.info("index output", line=text)
        code = await self.process.wait()
        self._log.info("index process ended", code=code)

    def _kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def _ended() -> MultigrainError:
    return MultigrainError(
        ErrorKind.UNAVAILABLE,
        "the index process ended before it answered: try again",
        retry_after=_FIRST_RETRY_SECONDS,
    )
