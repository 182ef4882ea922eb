"""grpc.health.v1: a status for the daemon, each service and each model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from multigrain.errors import MultigrainError
from multigrain_server.service_names import ALL, ALWAYS_READY, EMBEDDING, INFERENCE

_Status = health_pb2.HealthCheckResponse


# Names of services and models are shorter.
_MAX_NAME = 256


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Responds to health checks.

    Unlike grpcio's own, it has List and a message for unknown services, refuses long names, and
    waits for no subscriber that does not read.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        #: After ``end``.
        self.final = False

    def set(self, service: str, status: int) -> None:
        """Sets a status and notifies subscribers, until ``end``."""
        if self.final:
            return
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self) -> None:
        """Sets everything to NOT_SERVING for good."""
        for name in self._statuses:
            self.set(name, _Status.NOT_SERVING)
        self.final = True

    async def Check(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        _check_name(request.service)
        status = self._statuses.get(request.service)
        if status is None:
            # Without models, of which there may be many: List has them.
            known = ", ".join(ALL)
            message = f"no service {request.service[:80]!r}: leave it out, or name one of {known}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        service = request.service
        _check_name(service)
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, _Status.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue  # it may have changed while this was sent
            await changed.wait()

    async def List(  # noqa: N802
        self,
        request: health_pb2.HealthListRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthListResponse:
        statuses = {
            name: health_pb2.HealthCheckResponse(status=self._statuses[name])
            for name in sorted(self._statuses)
        }
        return health_pb2.HealthListResponse(statuses=statuses)


def _check_name(service: str) -> None:
    if len(service) > _MAX_NAME:
        raise MultigrainError.field(
            "service", f"has {len(service)} characters, at most {_MAX_NAME} are accepted"
        )


class Health:
    """The status of "" (the daemon) and of each service, for Check, List and Watch."""

    def __init__(self) -> None:
        self._servicer = _Servicer()
        self.ready = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the health service."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def start(self) -> None:
        """Sets everything to NOT_SERVING, before the server starts."""
        for name in ("", *ALL):
            self._servicer.set(name, _Status.NOT_SERVING)

    def serve(self) -> None:
        """Sets the daemon, and the services that need no model, to SERVING, unless it drains."""
        if self._servicer.final:
            return
        for name in ("", *ALWAYS_READY):
            self._servicer.set(name, _Status.SERVING)
        self.ready = True

    def on_health(self, service: str, healthy: bool) -> None:
        """Sets the status of EmbeddingService or a model, which depends on engines.

        Args:
            service: full name.
            healthy: whether it serves.
        """
        status = _Status.SERVING if healthy else _Status.NOT_SERVING
        for name in (service, INFERENCE) if service == EMBEDDING else (service,):
            self._servicer.set(name, status)

    def drain(self) -> None:
        """Sets everything to NOT_SERVING for good."""
        self.ready = False
        self._servicer.end()
