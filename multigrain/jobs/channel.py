"""The runner's end of the channel: a Unix socket on which the processes of a job report."""

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
from dataclasses import dataclass, field
from pathlib import Path

from multigrain.jobs.messages import GuardHello, Hello, Message, decode, encode

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
