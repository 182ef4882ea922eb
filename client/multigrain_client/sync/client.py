"""The blocking client."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from google.protobuf.wrappers_pb2 import StringValue

from multigrain_client import methods
from multigrain_client.batches import MAX_IMAGES
from multigrain_client.channel import Tls, channel_config
from multigrain_client.health import HealthStatus
from multigrain_client.retry import RetryPolicy
from multigrain_client.sync.images import ImageCalls
from multigrain_client.sync.jobs import JobCalls
from multigrain_client.sync.models import ModelCalls
from multigrain_client.sync.starts import StartCalls
from multigrain_client.sync.transport import Transport


class Client(StartCalls, JobCalls, ModelCalls, ImageCalls):
    """A client of one multigrain server, or of several alike. Safe to share between threads.

    ::

        with Client("127.0.0.1:50051") as client:
            job = client.start_training(preset="digits-demo")
            for point in client.stream_losses(job):
                print(point.step, point.loss)
            vectors = client.embed(["a.jpg", "b.jpg"])   # float32 (2, D)

    Nothing is connected until the first call.

    Args:
        target: "host:port", "host1:port1,host2:port2" (calls go round the addresses), or any
            gRPC target ("dns:///name:port").
        token: sent as ``authorization: Bearer <token>``.
        tls: True for TLS with the system's authorities, or a ``Tls``; None = plain TCP.
        timeout: seconds for a call and its retries, unless the call says otherwise; None = no
            limit. Loading, unloading and moving models have 900 s of their own.
        retry: what is tried again, and when.
        concurrency: calls that one ``embed`` or ``classify`` has under way at the same time.
        batch_size: images of one call, at most; the server's limit is 64 unless configured.
        keepalive: seconds between pings on a connection with calls in flight; 0 = none.
        hedge_after: seconds after which an Embed or Classify without an answer is made a second
            time, at the next of several addresses; the first answer counts. None = never. Set
            it near the 99th percentile of your latency: lower, and it doubles the load.
        options: further gRPC channel options.

    Raises:
        InvalidRequest: for a target or TLS files that cannot be right.
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
        super().__init__(Transport(config, timeout, retry or RetryPolicy(), hedge_after))
        self._concurrency = max(concurrency, 1)
        self._batch_size = max(batch_size, 1)

    def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        """Whether the server answers.

        Args:
            service: full name ("multigrain.v1.EmbeddingService"); empty = the server as a whole.

        Raises:
            NotFound: if there is no such service.
        """
        request = StringValue(value=service)
        answer = self._transport.unary(methods.HEALTH_CHECK, request, timeout)
        return HealthStatus(answer.value)

    def close(self) -> None:
        """Ends every call under way and closes the connections."""
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
