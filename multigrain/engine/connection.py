"""The engine's end of the socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence

from multigrain.engine.wire import Frame, FrameParser, Message, encode

_READ = 256 * 1024


class Connection:
    """Blocking frames over a stream socket; any thread may send.

    Args:
        max_payload: bytes of a payload that is accepted.
    """

    def __init__(self, sock: socket.socket, max_payload: int) -> None:
        self._socket = sock
        self._parser = FrameParser(max_payload)
        self._send_lock = threading.Lock()

    def frames(self) -> Iterator[Frame]:
        """Every frame until the other side closes. Raises WireError."""
        while True:
            try:
                data = self._socket.recv(_READ)
            except ConnectionError:
                return
            if not data:
                return
            yield from self._parser.feed(data)

    def send(self, message: Message, payload: bytes = b"") -> None:
        self.send_all([Frame(message, payload)])

    def send_all(self, frames: Sequence[Frame]) -> None:
        """Sends frames in one write; a peer that has gone is noticed by the reader instead."""
        data = b"".join(
            part
            for frame in frames
            for part in (encode(frame.message, len(frame.payload)), frame.payload)
        )
        with self._send_lock:
            try:
                self._socket.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return
