"""The HTTP side: status pages, /metrics for Prometheus, /healthz and /readyz for whoever runs the
daemon."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.access import Access
from multigrain_server.status.shell import SECURITY_HEADERS
from multigrain_server.status.site import StatusSite

_log = structlog.get_logger(__name__)

# That a client has to send its request, and to take the answer.
_CLIENT_SECONDS = 5.0
_MAX_CONNECTIONS = 64
# A browser then asks for a name and a password, and sends the latter as the token.
_CHALLENGE = 'WWW-Authenticate: Basic realm="multigrain", charset="UTF-8"'


@dataclass(frozen=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[str, ...] = ()


class HttpServer:
    """Answers GET and HEAD, one request a connection, on the event loop: the collectors read
    the daemon's state without locks.

    Args:
        registry: what /metrics shows.
        ready: whether the daemon takes requests (/readyz: 200 or 503).
        access: who may see what.
        site: the pages for people.
        tls: of each connection; None = none.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        access: Access,
        site: StatusSite,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._registry = registry
        self._ready = ready
        self._access = access
        self._site = site
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, host: str, port: int) -> str:
        """Listens and returns the address, with the chosen port if ``port`` is 0.

        Raises:
            OSError: if the address cannot be used.
        """
        self._server = await asyncio.start_server(
            self._connected,
            host,
            port,
            limit=8192,
            ssl=self._tls,
            ssl_handshake_timeout=_CLIENT_SECONDS if self._tls is not None else None,
        )
        chosen = self._server.sockets[0].getsockname()[1]
        return f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _MAX_CONNECTIONS:
                writer.write(await self._reply(reader))
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), _CLIENT_SECONDS)
        except (OSError, asyncio.IncompleteReadError):  # also of TLS, and that the time is over
            pass
        finally:
            self._connections -= 1
            # Who does not take the answer must not keep the connection, nor the answer in memory.
            writer.transport.abort()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _CLIENT_SECONDS)
        except asyncio.LimitOverrunError:
            return _encode(_Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b""), True)
        return await self._respond(head.decode("latin-1"))

    async def _respond(self, head: str) -> bytes:
        first, *rest = head.split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1"):
            return _encode(_Answer(HTTPStatus.BAD_REQUEST, b"not HTTP/1.1\n"), True)
        method, (path, _, query) = parts[0], parts[1].partition("?")
        if method not in ("GET", "HEAD"):
            answer = _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n")
            return _encode(answer, True)
        try:
            with self._access.enter_page(path, _values(rest, "authorization")):
                accept = next(iter(_values(rest, "accept")), "")
                answer = await self._answer(path, query, accept)
        except MultigrainError as error:
            answer = _refusal(error)
        return _encode(answer, method == "GET")

    async def _answer(self, path: str, query: str, accept: str) -> _Answer:
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
        try:
            page = await self._site.page(path, query)
        except Exception:  # a page's defect is no reason to hang
            _log.exception("page cannot be shown", path=path)
            return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n")
        if page is None:
            return _Answer(HTTPStatus.NOT_FOUND, b"try /, /metrics, /healthz or /readyz\n")
        return _Answer(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8", SECURITY_HEADERS)


def _values(lines: list[str], name: str) -> list[str]:
    """Of the headers of that name."""
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.lower() == name]


def _refusal(error: MultigrainError) -> _Answer:
    body = f"{error.message}\n".encode()
    match error.kind:
        case ErrorKind.UNAUTHENTICATED:
            return _Answer(HTTPStatus.UNAUTHORIZED, body, headers=(_CHALLENGE,))
        case ErrorKind.OVERLOADED:
            seconds = math.ceil(error.retry_after or 1)
            wait = (f"Retry-After: {seconds}",)
            return _Answer(HTTPStatus.TOO_MANY_REQUESTS, body, headers=wait)
    return _Answer(HTTPStatus.FORBIDDEN, body)


def _encode(answer: _Answer, with_body: bool) -> bytes:
    lines = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        *answer.headers,
        "Connection: close",
    )
    head = "".join(f"{line}\r\n" for line in (*lines, ""))
    return head.encode("latin-1") + (answer.body if with_body else b"")
