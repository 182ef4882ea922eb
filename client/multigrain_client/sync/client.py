# Generated from aio/client.py by `make sync-client`: edit that file instead.
"""The blocking client."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from google.protobuf.wrappers_pb2 import StringValue

from multigrain_client import methods
from multigrain_client.channel import Tls, channel_config
from multigrain_client.images import MAX_IMAGES
from multigrain_client.json_format import fill
from multigrain_client.methods import HealthStatus
from multigrain_client.retry import RetryPolicy
from multigrain_client.sync.images import ImageCalls
from multigrain_client.sync.indexes import IndexCalls
from multigrain_client.sync.jobs import JobCalls
from multigrain_client.sync.models import ModelCalls
from multigrain_client.sync.transport import Transport


class Client(JobCalls, ModelCalls, ImageCalls, IndexCalls):
    """Blocking client of one multigrain server, or of several identical ones. It can be
    shared between threads.

        with Client("127.0.0.1:50051") as client:
            job = client.start_training(preset="digits-demo")
            for point in client.stream_losses(job):
                print(point.step, point.loss)
            vectors = client.embed(["a.jpg", "b.jpg"])   # float32 (2, D)

    It connects at the first call.

    Args:
        target: "host:port", "host1:port1,host2:port2" (round-robin), or a gRPC target
            ("dns:///name:port", "unix:/path"). Connections to this machine and to several
            addresses never take a proxy; others take that of gRPC's environment variables.
        token: sent as ``authorization: Bearer <token>``; newlines at its end are dropped.
        tls: True for TLS with the system's certificate authorities, or a ``Tls``; None = plain
            TCP.
        timeout: default seconds for a call including its retries; None = no limit. Calls that
            load, unload or transfer a model have a default of 900 s.
        retry: what is retried, and when.
        concurrency: maximum number of parallel calls of one ``embed`` or ``classify``.
        batch_size: maximum number of images in one call; the server's default limit is 64.
        keepalive: seconds between pings on a connection with calls in flight; 0 = no pings.
        options: further gRPC channel options.

    Raises:
        InvalidRequest: for an invalid target, token or timeout, or invalid TLS files.
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
        options: Mapping[str, str | int] | None = None,
    ) -> None:
        config = channel_config(target, token=token, tls=tls, keepalive=keepalive, options=options)
        super().__init__(Transport(config, timeout, retry or RetryPolicy()))
        self._concurrency = max(concurrency, 1)
        self._batch_size = max(batch_size, 1)

    def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        """The health of the server.

        Args:
            service: full name ("multigrain.v1.EmbeddingService"); empty = the whole server.
            timeout: seconds for the call.

        Raises:
            NotFound: if there is no such service.
        """
        request = StringValue()
        fill(request, {"value": service})
        answer = self._transport.unary(methods.HEALTH_CHECK, request, timeout)
        return HealthStatus(answer.value)

    def close(self) -> None:
        """Cancels all calls and closes the connections. Later calls raise ``ClientClosed``."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
