"""The HTTP side: /metrics for Prometheus, /healthz and /readyz for whoever runs the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_log = structlog.get_logger(__name__)

_READ_SECONDS = 5.0
_MAX_CONNECTIONS = 64


@dataclass(frozen=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class HttpServer:
    """Answers GET and HEAD, one request a connection, on the event loop: the collectors read
    the daemon's state without locks.

    Args:
        registry: what /metrics shows.
        ready: whether the daemon takes requests (/readyz: 200 or 503).
    """

    def __init__(self, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, host: str, port: int) -> str:
        """Listens and returns the address, with the chosen port if ``port`` is 0.

        Raises:
            OSError: if the address cannot be used.
        """
        self._server = await asyncio.start_server(self._connected, host, port, limit=8192)
        chosen = self._server.sockets[0].getsockname()[1]
        return f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > _MAX_CONNECTIONS:
                return
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _READ_SECONDS)
            writer.write(self._respond(head.decode("latin-1")))
            await asyncio.wait_for(writer.drain(), _READ_SECONDS)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.LimitOverrunError:
            writer.write(_encode(_Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b""), True))
        finally:
            self._connections -= 1
            writer.close()

    def _respond(self, head: str) -> bytes:
        first, *rest = head.split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1"):
            return _encode(_Answer(HTTPStatus.BAD_REQUEST, b"not HTTP/1.1\n"), True)
        method, path = parts[0], parts[1].partition("?")[0]
        if method not in ("GET", "HEAD"):
            answer = _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n")
            return _encode(answer, True)
        accept = next(
            (line.partition(":")[2].strip() for line in rest if line.lower().startswith("accept:")),
            "",
        )
        return _encode(self._answer(path, accept), method == "GET")

    def _answer(self, path: str, accept: str) -> _Answer:
        match path:
            case "/metrics":
                try:
                    encode, content_type = choose_encoder(accept)
                    return _Answer(HTTPStatus.OK, encode(self._registry), content_type)
                except Exception:  # any collector's defect: the scraper must see it, not hang
                    _log.exception("metrics cannot be collected")
                    return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n")
            case "/healthz":
                return _Answer(HTTPStatus.OK, b"alive\n")
            case "/readyz":
                if self._ready():
                    return _Answer(HTTPStatus.OK, b"ready\n")
                return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
        return _Answer(HTTPStatus.NOT_FOUND, b"try /metrics, /healthz or /readyz\n")


def _encode(answer: _Answer, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (answer.body if with_body else b"")
