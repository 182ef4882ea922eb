"""The HTTP server: the API, status pages, /metrics for Prometheus, /healthz and /readyz for probes.

Importing this module takes 0.2 s of CPU time (aiohttp), so the daemon does it after it is ready.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from socket import socket

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.access import Access
from multigrain_server.http.acceptor import Acceptor, ConnectionLimits, Place
from multigrain_server.http.api import Api, api_error
from multigrain_server.http.host_check import HostCheck
from multigrain_server.http.metrics_page import MetricsPage
from multigrain_server.status.site import SECURITY_HEADERS, Page, RunQuery, StatusSite

_log = structlog.get_logger(__name__)

# In these seconds, a client must receive at least so many bytes of a response, or all of it.
_CLIENT_SECONDS = 5.0
_CLIENT_BYTES = 16 << 10
# A connection of an API client may wait so long for the next request.
_KEEPALIVE_SECONDS = 15.0
# A body that is not read is discarded for so long, so that its client gets the response.
_LINGERING_SECONDS = 0.5
LIMITS = ConnectionLimits()
# A browser asks for a name and a password, and the password is the token.
_CHALLENGE = 'Basic realm="multigrain", charset="UTF-8"'

_WRONG_ORIGIN = "the API is not for pages of other sites\n"
_WRONG_HOST = (
    "the daemon does not know this name: use its address, or add the name to access.hosts "
    "(--access-hosts), or protect the page with a token (access.tokens)\n"
)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Responds to one request per connection, and to several where they belong to the API.

    Everything but the rendering of pages runs on the daemon's event loop, so that its state is read
    without locks.

    Args:
        metrics: the content of /metrics.
        ready: whether the daemon takes requests (/readyz: 200 or 503).
        access: decides who may read what.
        site: the status pages.
        tls: makes the context of a connection; None = plain HTTP.
        hosts: names in the Host header that are accepted without tokens and TLS, beside the usual
            ones.
        api: the routes below /v1 and /v2.
    """

    def __init__(
        self,
        metrics: MetricsPage,
        ready: Callable[[], bool],
        access: Access,
        site: StatusSite,
        tls: Callable[[], ssl.SSLContext] | None = None,
        hosts: Sequence[str] = (),
        *,
        api: Api,
    ) -> None:
        self._metrics_page = metrics
        self._ready = ready
        self._access = access
        self._site = site
        self._api = api
        self.connections = Acceptor(self._connection, tls, LIMITS)
        # A browser compares the name with the certificate before it sends anything.
        checks_host = not access.needs_tokens and tls is None
        self._host_check = HostCheck(hosts) if checks_host else None
        application = web.Application(middlewares=[self._guard])
        application.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
                web.get("/", self._overview),
                web.get("/jobs", self._runs),
                web.get("/jobs/{job_id}", self._job),
                web.get("/compare", self._compare),
                web.get("/try", self._try),
                *api.routes(),
            ]
        )
        # Streams are sent before the middleware sees them again.
        application.on_response_prepare.append(_add_headers)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=1.0,
            handle_signals=False,
            # A call whose client has gone is canceled, as gRPC does it.
            handler_cancellation=True,
        )

    async def start(self, sockets: Sequence[socket]) -> None:
        """Accepts connections on sockets that are bound, and closes them at the end."""
        await self._runner.setup()
        self.connections.start(sockets)

    async def stop(self) -> None:
        """Stops accepting, and closes every connection."""
        self.connections.stop()
        await self._runner.cleanup()

    def _connection(self, place: Place) -> web.RequestHandler:
        server = self._runner.server
        assert server is not None
        return _Connection(self.connections, place, server)

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Checks method and access, and turns errors into responses."""
        response: web.StreamResponse
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.begin()
        is_call = self._api.serves(request.path)
        try:
            if self._host_check and not self._host_check.allows(request.headers.get("Host")):
                raise web.HTTPMisdirectedRequest(text=_WRONG_HOST)
            if is_call:
                if not _same_origin(request):
                    raise web.HTTPForbidden(text=_WRONG_ORIGIN)
                response = await self._api.handle(request, handler)
            else:
                response = await self._answer(request, handler)
        except MultigrainError as error:
            response = _refusal(error)
        except web.HTTPException as error:
            response = api_error(request, error) if is_call else _page_error(error)
        except Exception:  # a defect of a page or a collector: the client must get a response
            _log.exception("HTTP request failed", path=request.path)
            response = web.Response(status=500, text="see the log\n")
        if not response.prepared:
            # Who is not authorized gets no second request on the connection.
            keeps = is_call and response.status not in (401, 403, 421)
            _finish(response, keeps=keeps)
        connection.watch_response()
        return response

    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """The response to a request that is not for the API."""
        if request.method not in ("GET", "HEAD"):
            raise web.HTTPMethodNotAllowed(
                request.method, ("GET", "HEAD"), text="only GET and HEAD\n"
            )
        with self._access.enter_page(request.path, request.headers.getall("Authorization", ())):
            return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._metrics_page.get(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readiness(self, _request: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready\n")

    async def _overview(self, request: web.Request) -> web.Response:
        return _page(Page(200, await self._site.overview(live=_live(request))))

    async def _runs(self, request: web.Request) -> web.Response:
        names = ("state", "kind", "label", "name", "page")
        query = RunQuery(**{name: request.query.get(name, "") for name in names})
        return _page(await self._site.runs(query))

    async def _job(self, request: web.Request) -> web.Response:
        return _page(await self._site.job(request.match_info["job_id"], live=_live(request)))

    async def _try(self, _request: web.Request) -> web.Response:
        return _page(await self._site.picture())

    async def _compare(self, request: web.Request) -> web.Response:
        return _page(await self._site.compare(request.query.getall("job", [])))


class _Connection(web.RequestHandler):
    """A connection of the server."""

    __slots__ = ("_acceptor", "_unsent", "_watch", "place")

    def __init__(self, acceptor: Acceptor, place: Place, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEEPALIVE_SECONDS,
            lingering_time=_LINGERING_SECONDS,
            auto_decompress=False,  # `read_body` does it, in a thread
            access_log=None,  # type: ignore[arg-type]  # aiohttp documents None
            logger=logging.getLogger(__name__),
        )
        self._acceptor = acceptor
        self._watch: asyncio.TimerHandle | None = None
        self._unsent = 0
        self.place = place

    def begin(self) -> None:
        """Records that a request has arrived; the response before it has been received then."""
        self.place.requested()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def watch_response(self) -> None:
        """Ends the connection if the client does not receive the response.

        Otherwise it would keep the connection, and the response in memory.
        """
        self._unsent = -1
        self._check_later()

    def _check_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(_CLIENT_SECONDS, self._check, context=Context())

    def _check(self) -> None:
        self._watch = None
        if self.transport is None:
            return
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            # It waits for the next request: others may have its place.
            self.place.has_request = False
        elif 0 <= self._unsent < unsent + _CLIENT_BYTES:
            self.transport.abort()
        else:
            self._unsent = unsent
            self._check_later()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._acceptor.leave(self.place)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to a request that cannot be parsed."""
        self.place.requested()
        text = "cannot parse the request"
        if isinstance(exc, LineTooLong):
            status, text = 431, f"{text}: its address or a header is too long"
        return _finish(web.Response(status=status, text=f"{text}\n"))


def _same_origin(request: web.Request) -> bool:
    """Whether it does not come from a page of another site, which may send forms and images."""
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("Host")


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    _finish(response, keeps=True)


def _finish(response: web.StreamResponse, *, keeps: bool = False) -> web.StreamResponse:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "multigrain"  # in place of the versions of Python and aiohttp
    if not keeps:
        response.force_close()
    return response


def _live(request: web.Request) -> bool:
    return request.query.get("live") != "0"


def _page_error(error: web.HTTPException) -> web.Response:
    headers = {}
    text = error.text
    match error:
        case web.HTTPNotFound():
            text = "try /, /jobs, /try, /metrics, /healthz, /readyz or /openapi.json\n"
        case web.HTTPMethodNotAllowed():
            headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return web.Response(status=error.status, text=text, headers=headers)


def _page(page: Page) -> web.Response:
    headers = {"Content-Security-Policy": page.policy} if page.policy else None
    return web.Response(
        status=page.status, text=page.html, content_type="text/html", headers=headers
    )


def _refusal(error: MultigrainError) -> web.Response:
    text = f"{error.message}\n"
    match error.kind:
        case ErrorKind.UNAUTHENTICATED:
            return web.Response(status=401, text=text, headers={"WWW-Authenticate": _CHALLENGE})
        case ErrorKind.OVERLOADED:
            seconds = math.ceil(error.retry_after or 1)
            return web.Response(status=429, text=text, headers={"Retry-After": str(seconds)})
    return web.Response(status=403, text=text)
