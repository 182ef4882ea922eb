"""An HTTP/2 client that may break off, flood or hold back as no gRPC client does."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_CONTINUATION = 9
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_MAX_FRAME = 16384


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, section 4.1)."""
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


def settings() -> bytes:
    """The client's first frame."""
    return frame(_SETTINGS, 0, 0)


def headers(stream: int, block: bytes) -> bytes:
    """The headers of a request, in as many frames as they need (RFC 9113, section 6.10)."""
    pieces = [block[start : start + _MAX_FRAME] for start in range(0, len(block), _MAX_FRAME)]
    kinds = [_HEADERS] + [_CONTINUATION] * (len(pieces) - 1)
    flags = [0] * (len(pieces) - 1) + [_END_HEADERS]
    return b"".join(map(frame, kinds, flags, [stream] * len(pieces), pieces))


def call_headers(method: str, metadata: Iterable[tuple[str, str]] = ()) -> bytes:
    """The header block of a gRPC call, without compression (RFC 7541, section 6.2.2)."""
    pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    ]
    return b"".join(b"\x00" + _text(key) + _text(value) for key, value in pairs)


def repeated_headers(method: str, value_bytes: int = 3900, times: int = 12_000) -> bytes:
    """A header block that adds one entry to the table of the server and then repeats it.

    It decodes to ``value_bytes * times`` bytes.
    """
    entry = b"\x40" + _text("x-a") + _integer(value_bytes, 7) + b"v" * value_bytes
    return call_headers(method) + entry + b"\xbe" * times


def many_headers(method: str, entries: int) -> bytes:
    """A header block whose entries take a byte each, and 33 bytes of gRPC's limit."""
    return call_headers(method) + b"\x40" + _text("a") + _text("") + b"\xbe" * entries


def _text(text: str) -> bytes:
    data = text.encode()
    return _integer(len(data), 7) + data


def _integer(number: int, bits: int) -> bytes:
    """An integer with a prefix of some bits (RFC 7541, section 5.1)."""
    limit = (1 << bits) - 1
    if number < limit:
        return bytes([number])
    number -= limit
    data = [limit]
    while number >= 128:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


class Connection:
    """A connection whose frames a thread reads.

    Attributes:
        ended: streams that the server ended.
        closed: whether the server closed the connection.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ended: set[int] = set()
        self.closed = False
        self._initial = 65535
        self._windows = {0: 65535}
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self.send(PREFACE + settings())
        threading.Thread(target=self._read, daemon=True).start()

    def open(self, stream: int, method: str, metadata: Iterable[tuple[str, str]] = ()) -> None:
        """Begins a call."""
        with self._changed:
            self._windows.setdefault(stream, self._initial)
        self.send(headers(stream, call_headers(method, metadata)))

    def send_message(self, stream: int, size: int, missing: int = 0, seconds: float = 5.0) -> int:
        """Sends a message of zeros, as far as the server accepts it.

        Args:
            stream: of a call that was opened.
            size: bytes of the message.
            missing: bytes at its end that are not sent.
            seconds: that the server has to accept it.

        Returns:
            The bytes sent.
        """
        first = b"\0" + size.to_bytes(4, "big")
        total = len(first) + size - missing
        sent = 0
        until = time.monotonic() + seconds
        while sent < total:
            room = self._room(stream, min(total - sent, _MAX_FRAME), until)
            if not room:
                break
            data = (first[sent:] + bytes(room))[:room]
            sent += room
            flags = _END_STREAM if sent == total and not missing else 0
            self.send(frame(_DATA, flags, stream, data))
        return sent

    def wait_for_end(self, stream: int, seconds: float = 30.0) -> bool:
        """Whether the server ends a stream, or the connection, within some seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.closed or stream in self.ended, seconds)

    def close(self) -> None:
        """Closes the connection."""
        with suppress(OSError):  # the server was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _room(self, stream: int, wanted: int, until: float) -> int:
        """Takes up to ``wanted`` bytes from the flow-control windows; 0 = no more may be sent."""

        def ready() -> bool:
            open_ = min(self._windows[0], self._windows[stream]) > 0
            return open_ or self.closed or stream in self.ended

        with self._changed:
            self._changed.wait_for(ready, max(0.0, until - time.monotonic()))
            if self.closed or stream in self.ended:
                return 0
            room = max(0, min(wanted, self._windows[0], self._windows[stream]))
            self._windows[0] -= room
            self._windows[stream] -= room
            return room

    def send(self, data: bytes) -> None:
        """Sends frames."""
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError:
                self._end()

    def _end(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as file:
                while len(head := file.read(9)) == 9:
                    length = int.from_bytes(head[:3], "big")
                    stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                    self._receive(head[3], head[4], stream, file.read(length))
        except (OSError, ValueError):
            pass
        self._end()

    def _receive(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        with self._changed:
            if kind == _SETTINGS and not flags & _ACK:
                for key, value in struct.iter_unpack(">HI", payload):
                    if key == 4:  # SETTINGS_INITIAL_WINDOW_SIZE
                        for number in self._windows.keys() - {0}:
                            self._windows[number] += value - self._initial
                        self._initial = value
                self.send(frame(_SETTINGS, _ACK, 0))
            elif kind == _WINDOW_UPDATE:
                before = self._windows.get(stream, self._initial)
                self._windows[stream] = before + int.from_bytes(payload, "big")
            elif kind == _PING and not flags & _ACK:
                self.send(frame(_PING, _ACK, 0, payload))
            elif kind == _RESET or (kind == _HEADERS and flags & _END_STREAM):
                self.ended.add(stream)
            self._changed.notify_all()
