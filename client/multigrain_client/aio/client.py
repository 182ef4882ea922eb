"""The asyncio client."""

# ruff: noqa: ASYNC109 - a time-out here becomes the deadline that the server sees.

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from google.protobuf.wrappers_pb2 import StringValue

from multigrain_client import methods
from multigrain_client.aio.images import AsyncImageCalls
from multigrain_client.aio.jobs import AsyncJobCalls
from multigrain_client.aio.models import AsyncModelCalls
from multigrain_client.aio.starts import AsyncStartCalls
from multigrain_client.aio.transport import AsyncTransport
from multigrain_client.batches import MAX_IMAGES
from multigrain_client.channel import Tls, channel_config
from multigrain_client.health import HealthStatus
from multigrain_client.retry import RetryPolicy


class AsyncClient(AsyncStartCalls, AsyncJobCalls, AsyncModelCalls, AsyncImageCalls):
    """``Client`` for asyncio: the same arguments and methods, as coroutines and asynchronous
    iterators. It belongs to the event loop of its first call.

    ::

        async with AsyncClient("127.0.0.1:50051") as client:
            job = await client.start_training(preset="digits-demo")
            async for point in client.stream_losses(job):
                print(point.step, point.loss)
            vectors = await client.embed(["a.jpg", "b.jpg"])   # float32 (2, D)
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        tls: Tls | bool | None = None,
        timeout: float | None = 60.0,
        retry: RetryPolicy | None = None,
        concurrency: int = 4,
        batch_size: int = MAX_IMAGES,
        keepalive: float = 60.0,
        hedge_after: float | None = None,
        options: Mapping[str, str | int] | None = None,
    ) -> None:
        config = channel_config(target, token=token, tls=tls, keepalive=keepalive, options=options)
        super().__init__(AsyncTransport(config, timeout, retry or RetryPolicy(), hedge_after))
        self._concurrency = max(concurrency, 1)
        self._batch_size = max(batch_size, 1)

    async def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        """As ``Client.health``."""
        request = StringValue(value=service)
        answer = await self._transport.unary(methods.HEALTH_CHECK, request, timeout)
        return HealthStatus(answer.value)

    async def close(self) -> None:
        """Ends every call under way and closes the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
