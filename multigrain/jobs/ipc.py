"""The channel between a job's runner and its processes: messages, and both ends of the socket.

A message is one line of JSON, ``{"<name>": {<fields>}}``. A record travels in the form that it has
in the event log.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import get_args

import msgspec

from multigrain.events.records import Record, encode_json, record_fields, record_from_dict

log = logging.getLogger(__name__)

SCHEDULER_RANK = -2
"""Rank of MindSpore's scheduler process."""

EXIT_RUNNER_LOST = 75
"""Exit code of a worker whose runner has ended (EX_TEMPFAIL of sysexits.h)."""

_RECEIVE_BYTES = 1 << 16
_MAX_LINE_BYTES = 16 << 20
_ALIVE_SECONDS = 0.25  # between two signs of life; attempt.MIN_STALL_SECONDS is well above it


@dataclass(frozen=True)
class GuardHello:
    """First message of a guard, the parent process of a worker or of the scheduler."""

    token: str = field(repr=False)  # must not be logged
    rank: int
    pid: int


@dataclass(frozen=True)
class Hello:
    """First message of a worker."""

    token: str = field(repr=False)  # must not be logged
    rank: int
    world: int
    pid: int


@dataclass(frozen=True)
class Ready:
    """The worker has joined the cluster and starts to work."""


@dataclass(frozen=True)
class Emit:
    """A record for the event log."""

    record: Record


@dataclass(frozen=True)
class Alive:
    """A sign of life."""


@dataclass(frozen=True)
class Failed:
    """The worker failed with an exception.

    ``kind`` is a name of ErrorKind; "" for any exception that is not a MultigrainError.
    """

    kind: str
    message: str
    field: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True)
class Done:
    """The worker finished; the fields are those of ``multigrain.jobs.context.Outcome``."""

    stopped: bool
    message: str


@dataclass(frozen=True)
class Exit:
    """From a guard: its worker has exited. ``signal`` is set if a signal killed it."""

    code: int
    signal: int | None = None


@dataclass(frozen=True)
class Terminate:
    """From a guard that received SIGTERM: the job should stop."""


@dataclass(frozen=True)
class Stop:
    """From the runner: save a checkpoint and return."""


Message = GuardHello | Hello | Ready | Emit | Alive | Failed | Done | Exit | Terminate | Stop

_TYPES: dict[str, type[Message]] = {cls.__name__: cls for cls in get_args(Message)}


def encode(message: Message) -> bytes:
    """The line of a message, with its newline."""
    if isinstance(message, Emit):
        return encode_json({"Emit": {message.record.key: record_fields(message.record)}})
    return encode_json({type(message).__name__: message})


def decode(line: bytes) -> Message:
    """The message in a line.

    Raises:
        ValueError: if it is not a message.
    """
    try:
        ((name, fields),) = msgspec.json.decode(line, type=dict).items()
        if name == "Emit":
            return Emit(record_from_dict(fields))
        return msgspec.convert(fields, _TYPES[name])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a message: {error!r}") from error


@dataclass(eq=False)
class Peer:
    """One connected process: a worker, or the guard of one."""

    socket: socket.socket
    hello: Hello | GuardHello | None = None
    buffer: bytearray = field(default_factory=bytearray)

    def send(self, message: Message) -> None:
        """Sends a short message; a peer that has gone is only logged."""
        try:
            self.socket.sendall(encode(message))
        except OSError:
            log.info("cannot send message: message=%s peer=%s", message, self.hello)


@dataclass(frozen=True)
class Received:
    """A message and its sender; ``message`` is None when the peer has closed the connection."""

    peer: Peer
    message: Message | None


class ChannelServer:
    """The runner's end: a Unix socket in a private folder, for processes that know the token.

    The folder is in the system's temporary folder, since the address of a Unix socket has at most
    108 bytes. Folders that killed runners of the same job left behind are removed.

    Args:
        owner: the job's folder; the caller is the job's only runner.
    """

    def __init__(self, owner: Path) -> None:
        remove_channels(owner)
        self._folder = Path(tempfile.mkdtemp(prefix=_prefix(owner)))
        self.address = str(self._folder / "s")
        self.token = secrets.token_hex(16)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        # Python writes the number of a signal here, which ends a wait.
        self.wakeup_fd, self._woken_fd = _nonblocking_pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken_fd, selectors.EVENT_READ)

    def wait(self, seconds: float) -> list[Received]:
        """Waits for messages; returns [] after ``seconds``, or after a signal."""
        received: list[Received] = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj == self._woken_fd:
                os.read(self._woken_fd, 4096)
            else:
                received += self._receive(key.data)
        return received

    def close(self) -> None:
        """Closes every connection, so that workers exit, and removes the folder."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Peer):
                key.data.socket.close()
        self._selector.close()
        self._listener.close()
        os.close(self.wakeup_fd)
        os.close(self._woken_fd)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.settimeout(5.0)
        self._selector.register(connection, selectors.EVENT_READ, Peer(connection))

    def _drop(self, peer: Peer) -> None:
        self._selector.unregister(peer.socket)
        peer.socket.close()

    def _receive(self, peer: Peer) -> list[Received]:
        try:
            data = peer.socket.recv(_RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return [Received(peer, None)] if peer.hello else []
        *lines, rest = (peer.buffer + data).split(b"\n")
        peer.buffer = bytearray(rest)
        received: list[Received] = []
        try:
            if len(rest) > _MAX_LINE_BYTES:
                raise ValueError("line too long")
            for line in lines:
                message = decode(bytes(line))
                if peer.hello is None:
                    self._introduce(peer, message)
                received.append(Received(peer, message))
        except ValueError as error:
            log.warning("connection dropped after a protocol error: error=%s", error)
            self._drop(peer)
            if peer.hello:
                received.append(Received(peer, None))
        return received

    def _introduce(self, peer: Peer, message: Message) -> None:
        if not isinstance(message, Hello | GuardHello):
            raise ValueError("first message is not a hello")
        if not hmac.compare_digest(message.token, self.token):
            raise ValueError("wrong token")
        peer.hello = message


def channel_folders(owner: Path) -> list[Path]:
    """Folders of a job's channels; at most one of them is in use."""
    return list(Path(tempfile.gettempdir()).glob(f"{_prefix(owner)}*"))


def remove_channels(owner: Path) -> None:
    """Removes the folders that killed runners of a job left; only for the job's only runner."""
    for stale in channel_folders(owner):
        shutil.rmtree(stale, ignore_errors=True)


def _prefix(owner: Path) -> str:
    return f"multigrain-{hashlib.sha256(bytes(owner)).hexdigest()[:12]}-"


def _nonblocking_pipe() -> tuple[int, int]:
    """(write end, read end)"""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    return write_fd, read_fd


class ChannelReporter:
    """The worker's end; implements ``multigrain.jobs.context.Reporter``.

    ``emit`` only queues the record: one thread encodes and sends, so that a step never waits for
    the event log. A second thread receives, and ends the process when the runner has gone: without
    a runner nothing that the worker does is recorded.

    Args:
        address: of the runner's Unix socket.
        hello: introduces the worker.
        on_lost: called with an exit code, by a thread, when the runner has gone.

    Raises:
        OSError: if the runner cannot be reached.
    """

    def __init__(
        self, address: str, hello: Hello, on_lost: Callable[[int], object] = os._exit
    ) -> None:
        self._on_lost = on_lost
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(address)
        self._socket.sendall(encode(hello))
        self._stop = threading.Event()
        self._queue: SimpleQueue[Message | None] = SimpleQueue()
        self._alive_after = 0.0
        self._sender = threading.Thread(target=self._send, name="reporter-send", daemon=True)
        self._sender.start()
        threading.Thread(target=self._listen, name="reporter-listen", daemon=True).start()

    def emit(self, record: Record) -> None:
        """See ``Reporter``."""
        self._queue.put(Emit(record))

    def alive(self) -> None:
        """See ``Reporter``; sends at most four messages per second."""
        now = time.monotonic()
        if now >= self._alive_after:
            self._alive_after = now + _ALIVE_SECONDS
            self._queue.put(Alive())

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def ready(self) -> None:
        """Reports that the worker has joined the cluster."""
        self._queue.put(Ready())

    def finish(self, message: Done | Failed) -> None:
        """Reports how the work ended; returns when every message has been sent."""
        self._queue.put(message)
        self._queue.put(None)
        self._sender.join()

    def _send(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                self._socket.sendall(encode(message))
            except OSError:
                self._on_lost(EXIT_RUNNER_LOST)
                return

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            try:
                for line in lines:
                    if isinstance(decode(line), Stop):
                        self._stop.set()
            except (OSError, ValueError):
                pass  # the runner has gone, or is not ours: exit either way
        self._on_lost(EXIT_RUNNER_LOST)
