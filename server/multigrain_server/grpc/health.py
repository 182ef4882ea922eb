"""grpc.health.v1: one status a service, told as it is."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from multigrain_server.grpc.server import ALWAYS_READY, EMBEDDING, EVERY, INFERENCE

_Status = health_pb2.HealthCheckResponse


class _Servicer(health_aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """With what grpcio's own lacks: a call, and a word about services that there are not."""

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
            # Not those of models, of which there may be any number: List has them.
            known = ", ".join(EVERY)
            asked = request.service[:80]
            message = f"no service {asked!r}: leave it out, or ask for one of {known}"
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
    """Status of "" (the daemon) and of each service; Check, List and Watch."""

    def __init__(self) -> None:
        self._servicer = _Servicer()
        self._changes: set[asyncio.Task[None]] = set()
        self.ready = False

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Before the server starts: everything but serving is decided then."""
        for name in ("", *EVERY):
            await self._servicer.set(name, _Status.NOT_SERVING)

    async def serve(self) -> None:
        """The daemon takes requests."""
        for name in ("", *ALWAYS_READY):
            await self._servicer.set(name, _Status.SERVING)
        self.ready = True

    def on_health(self, service: str, healthy: bool) -> None:
        """Tells of a service whose readiness comes and goes (EmbeddingService).

        Args:
            service: full or short name.
            healthy: whether it answers.
        """
        full = service if "." in service else f"multigrain.v1.{service}"
        status = _Status.SERVING if healthy else _Status.NOT_SERVING
        for name in (full, INFERENCE) if full == EMBEDDING else (full,):
            task = asyncio.get_running_loop().create_task(self._servicer.set(name, status))
            self._changes.add(task)
            task.add_done_callback(self._changes.discard)

    async def drain(self) -> None:
        """Everything is NOT_SERVING from now on, whatever is told later."""
        self.ready = False
        await self._servicer.enter_graceful_shutdown()
