"""An HTTP proxy for CONNECT, which records where clients want to go."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self


class HttpProxy:
    """Leads every connection to one server, or refuses it with 403.

    Args:
        server: HOST:PORT of the server; "" = refuse.
    """

    def __init__(self, server: str = "") -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.wanted: list[str] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sock in (self._listener, *self._open):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._open.append(client)
            request = b""
            while b"\r\n\r\n" not in request:
                request += client.recv(4096)
            self.wanted.append(request.split()[1].decode())
            if not self._server:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                client.close()
                continue
            host, port = self._server.rsplit(":", 1)
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:  # it has stopped
                client.close()
                continue
            self._open.append(server)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
    except OSError:
        pass
