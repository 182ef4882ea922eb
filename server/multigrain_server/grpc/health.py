"""grpc.health.v1: a status for the daemon, each service and each model."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from multigrain_server.service_names import ALL, ALWAYS_READY, EMBEDDING, INFERENCE

_Status = health_pb2.HealthCheckResponse


class _Servicer(health_aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """Adds what grpcio's own lacks: List, and a message for unknown services."""

    def __init__(self) -> None:
        super().__init__()
        self._names: set[str] = set()

    async def set(self, service: str, status: int) -> None:
        self._names.add(service)
        await super().set(service, status)

    async def Check(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            # Without models, of which there may be many: List has them.
            known = ", ".join(ALL)
            message = f"no service {request.service[:80]!r}: leave it out, or name one of {known}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        return await super().Check(request, context)

    async def List(  # noqa: N802
        self,
        request: health_pb2.HealthListRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthListResponse:
        statuses = {
            name: await self.Check(health_pb2.HealthCheckRequest(service=name), context)
            for name in sorted(self._names)
        }
        return health_pb2.HealthListResponse(statuses=statuses)


class Health:
    """The status of "" (the daemon) and of each service, for Check, List and Watch."""

    def __init__(self) -> None:
        self._servicer = _Servicer()
        self._changes: set[asyncio.Task[None]] = set()
        self.ready = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the health service."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Sets everything to NOT_SERVING, before the server starts."""
        for name in ("", *ALL):
            await self._servicer.set(name, _Status.NOT_SERVING)

    async def serve(self) -> None:
        """Sets the daemon, and the services that need no model, to SERVING."""
        for name in ("", *ALWAYS_READY):
            await self._servicer.set(name, _Status.SERVING)
        self.ready = True

    def on_health(self, service: str, healthy: bool) -> None:
        """Sets the status of EmbeddingService or a model, which depends on engines.

        Args:
            service: full name.
            healthy: whether it serves.
        """
        status = _Status.SERVING if healthy else _Status.NOT_SERVING
        for name in (service, INFERENCE) if service == EMBEDDING else (service,):
            task = asyncio.get_running_loop().create_task(self._servicer.set(name, status))
            self._changes.add(task)
            task.add_done_callback(self._changes.discard)

    async def drain(self) -> None:
        """Sets everything to NOT_SERVING for good."""
        self.ready = False
        await self._servicer.enter_graceful_shutdown()
