"""What the runner and the processes of a job say to each other: one JSON object a line.

Every line is ``{"<name>": {fields}}``. A record travels as it stands in the event log.
"""

from __future__ import annotations

import hashlib
import hmac
import json
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

from multigrain.events.records import Record, record_from_dict, record_to_dict

SCHEDULER_RANK = -2
"""Stands for MindSpore's scheduler process where a rank is asked for."""


@dataclass(frozen=True)
class GuardHello:
    """First line of a guard: the parent of a worker (or of the scheduler), which outlives it."""

    name: ClassVar[str] = "guard"
    token: str
    rank: int
    pid: int


@dataclass(frozen=True)
class Hello:
    """First line of a worker."""

    name: ClassVar[str] = "hello"
    token: str
    rank: int
    world: int
    pid: int


@dataclass(frozen=True)
class Ready:
    """The worker has joined the cluster and begins its work."""

    name: ClassVar[str] = "ready"


@dataclass(frozen=True)
class Emit:
    """A record for the event log."""

    name: ClassVar[str] = "record"
    record: Record


@dataclass(frozen=True)
class Alive:
    """The work goes on."""

    name: ClassVar[str] = "alive"


@dataclass(frozen=True)
class Failed:
    """The work raised. ``kind`` is a name of ErrorKind, or "" for a defect: any other exception,
    for want of memory say."""

    name: ClassVar[str] = "failed"
    kind: str
    message: str
    field: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True)
class Done:
    """The work returned; fields as those of ``multigrain.jobs.context.Outcome``."""

    name: ClassVar[str] = "done"
    stopped: bool
    message: str


@dataclass(frozen=True)
class Exit:
    """Said by a guard: its process has ended. ``signal`` is set if a signal killed it."""

    name: ClassVar[str] = "exit"
    code: int
    signal: int | None = None


@dataclass(frozen=True)
class Terminate:
    """Said by a guard that got SIGTERM: somebody wants the job to end in order."""

    name: ClassVar[str] = "terminate"


@dataclass(frozen=True)
class Stop:
    """Runner to worker: save what is to be saved and return."""

    name: ClassVar[str] = "stop"


Message = GuardHello | Hello | Ready | Emit | Alive | Failed | Done | Exit | Terminate | Stop

_TYPES: dict[str, type[Message]] = {
    cls.name: cls
    for cls in (GuardHello, Hello, Ready, Emit, Alive, Failed, Done, Exit, Terminate, Stop)
}


def encode(message: Message) -> bytes:
    """The line of a message, with its newline."""
    if isinstance(message, Emit):
        fields: dict[str, Any] = record_to_dict(message.record)
    else:
        fields = asdict(message)
    return (
        json.dumps({message.name: fields}, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    )


def decode(line: bytes) -> Message:
    """
    Raises:
        ValueError: if the line is not a message.
    """
    try:
        ((name, fields),) = json.loads(line).items()
        cls = _TYPES[name]
        if cls is Emit:
            return Emit(record_from_dict(fields))
        return cls(**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from error


# MERGED: The runner's end of the channel: a Unix socket on which the processes of a job report.


log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16
_MAX_LINE_BYTES = 16 << 20


@dataclass(eq=False)
class Peer:
    """One connected process: a worker, or the guard of one."""

    socket: socket.socket
    hello: Hello | GuardHello | None = None
    buffer: bytearray = field(default_factory=bytearray)

    def send(self, message: Message) -> None:
        """Sends a short message. A peer that is gone is none of the sender's business."""
        try:
            self.socket.sendall(encode(message))
        except OSError:
            log.info("could not send %s to %s", message, self.hello)


@dataclass(frozen=True)
class Received:
    """A message and who sent it; ``message`` is None when the peer has closed its end."""

    peer: Peer
    message: Message | None


class ChannelServer:
    """Listens in a private folder; only processes that know the token are listened to.

    The folder is below the system's temporary folder, since the address of a Unix socket has
    only 108 bytes. One that a killed runner of the same job left there is removed.

    Args:
        owner: the job's folder, of which the caller is the only runner.
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
        # A signal must end a wait: Python writes its number here.
        self.wakeup_fd, self._woken_fd = _nonblocking_pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken_fd, selectors.EVENT_READ)

    def wait(self, seconds: float) -> list[Received]:
        """What has come in; [] after ``seconds``, or after a signal."""
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
        """Closes every connection, at which workers end themselves, and removes the folder."""
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
                raise ValueError("a line is too long")
            for line in lines:
                message = decode(bytes(line))
                if peer.hello is None:
                    self._introduce(peer, message)
                received.append(Received(peer, message))
        except ValueError as error:
            log.warning("dropping a connection that does not follow the protocol: %s", error)
            self._drop(peer)
            if peer.hello:
                received.append(Received(peer, None))
        return received

    def _introduce(self, peer: Peer, message: Message) -> None:
        if not isinstance(message, Hello | GuardHello):
            raise ValueError("the first message is not a hello")
        if not hmac.compare_digest(message.token, self.token):
            raise ValueError("wrong token")
        peer.hello = message


def channel_folders(owner: Path) -> list[Path]:
    """Folders of the channels of a job, of which one at most is in use."""
    return list(Path(tempfile.gettempdir()).glob(f"{_prefix(owner)}*"))


def remove_channels(owner: Path) -> None:
    """Removes what killed runners of a job have left; for its only runner, without a channel."""
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


# MERGED: A worker's end of the channel.


EXIT_RUNNER_LOST = 75
"""Exit code of a worker whose runner has gone (EX_TEMPFAIL of sysexits.h)."""

_ALIVE_SECONDS = 0.25
"""Time between two signs of life at least; ``ranks.MIN_STALL_SECONDS`` is well above it."""


class ChannelReporter:
    """Speaks to the runner; implements ``multigrain.jobs.context.Reporter``.

    ``emit`` only puts the record into a queue: a thread of its own encodes and sends, so that
    a step never waits for the event log. A second thread listens; when the runner has gone it
    ends the process, since a worker without a runner has nobody to record what it does.

    Args:
        address: of the runner's Unix socket.
        hello: introduces the worker.
        on_lost: called with an exit code by a thread that finds that the runner has gone.

    Raises:
        OSError: if the runner is not there.
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
        self._queue.put(Emit(record))

    def alive(self) -> None:
        now = time.monotonic()
        if now >= self._alive_after:
            self._alive_after = now + _ALIVE_SECONDS
            self._queue.put(Alive())

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def ready(self) -> None:
        """Tells that the cluster is formed and the work begins."""
        self._queue.put(Ready())

    def finish(self, message: Done | Failed) -> None:
        """Tells how the work ended, and returns when everything said has been sent."""
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
                pass  # the runner is gone, or not ours: the end is the same
        self._on_lost(EXIT_RUNNER_LOST)
