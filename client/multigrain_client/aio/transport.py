"""Calls over one asyncio channel: deadline, metadata, retries. Nothing knows gRPC above this."""

# ruff: noqa: ASYNC109 - a time-out here becomes the deadline that the server sees.

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, Generic, TypeVar

import grpc
from grpc import aio

from multigrain_client.aio.first_status import FirstStatus
from multigrain_client.aio.hedge import hedged
from multigrain_client.channel import ChannelConfig
from multigrain_client.errors import MultigrainClientError
from multigrain_client.methods import Method, Request, Response
from multigrain_client.retry import RetryPolicy, unary_delay
from multigrain_client.status import from_rpc

T = TypeVar("T")


class AsyncTransport:
    """One channel, opened at the first call in the event loop that makes it."""

    def __init__(
        self,
        config: ChannelConfig,
        timeout: float | None,
        policy: RetryPolicy,
        hedge_after: float | None = None,
    ) -> None:
        self.config = config
        self.timeout = timeout
        self.policy = policy
        self._hedge_after = hedge_after
        self._opened: aio.Channel | None = None

    @property
    def _channel(self) -> aio.Channel:
        # A channel belongs to the loop it is made in; a client may be made before there is one.
        if self._opened is None:
            options = list(self.config.options)
            self._opened = (
                aio.insecure_channel(self.config.target, options)
                if self.config.credentials is None
                else aio.secure_channel(self.config.target, self.config.credentials, options)
            )
        return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def unary(
        self, method: Method[Request, Response], request: Request, timeout: float | None = None
    ) -> Response:
        """As ``Transport.unary``."""
        call: aio.UnaryUnaryMultiCallable[Request, Response] = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        hedge_after = self._hedge_after if method.hedged else None

        def begin(remaining: float | None) -> Awaitable[Response]:
            return call(request, timeout=remaining, metadata=self._metadata)

        seconds = self.seconds(method, timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        failures = 0
        while True:
            remaining = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            try:
                if hedge_after is None:
                    return await begin(remaining)
                return await hedged(begin, hedge_after, remaining)
            except aio.AioRpcError as rpc_error:
                error = self.error(rpc_error, method)
                failures += 1
                left = None if deadline is None else deadline - time.monotonic()
                delay = unary_delay(
                    self.policy,
                    error,
                    failures=failures,
                    idempotent=method.idempotent(request),
                    remaining=left,
                )
                if delay is None:
                    raise error from rpc_error
            await asyncio.sleep(delay)

    def stream(
        self, method: Method[Request, Response], request: Request, timeout: float | None = None
    ) -> AsyncGenerator[Response, None]:
        """As ``Transport.stream``."""
        call = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(request, timeout=timeout, metadata=self._metadata)
        return self._messages(call, method)

    async def upload(
        self,
        method: Method[Request, Response],
        requests: AsyncIterator[Request],
        timeout: float | None = None,
    ) -> Response:
        """As ``Transport.upload``."""
        guarded = _Guarded(requests)
        callable_: aio.StreamUnaryMultiCallable[Request, Response] = self._channel.stream_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        call = callable_(
            guarded.items(), timeout=self.seconds(method, timeout), metadata=self._metadata
        )
        status = FirstStatus(call)
        try:
            return await call
        except (aio.AioRpcError, asyncio.CancelledError) as error:
            # gRPC cancels the call when the requests raise, and only logs why.
            if guarded.failure is not None:
                raise guarded.failure from None
            if isinstance(error, aio.AioRpcError):
                raise self.error(status.of(error), method) from error
            raise

    def exchange(
        self,
        method: Method[Request, Response],
        requests: AsyncIterator[Request],
        timeout: float | None = None,
    ) -> AsyncGenerator[Response, None]:
        """As ``Transport.exchange``."""
        call = self._channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(requests, timeout=timeout, metadata=self._metadata)
        return self._messages(call, method)

    def seconds(self, method: Method[Any, Any], timeout: float | None) -> float | None:
        """The time-out of a call: its own, the method's, the client's."""
        if timeout is not None:
            return timeout
        return method.timeout if method.timeout is not None else self.timeout

    def error(self, error: grpc.RpcError, method: Method[Any, Any]) -> MultigrainClientError:
        return from_rpc(error, method.name, self.config.shown_target)

    @property
    def _metadata(self) -> aio.Metadata:
        return aio.Metadata(*self.config.call_metadata())

    async def _messages(
        self, call: Any, method: Method[Any, Response]
    ) -> AsyncGenerator[Response, None]:
        # `call` is both an async iterator of messages and a grpc.aio.Call.
        status = FirstStatus(call)
        try:
            async for message in call:
                yield message
        except aio.AioRpcError as rpc_error:
            raise self.error(status.of(rpc_error), method) from rpc_error
        finally:
            call.cancel()


class _Guarded(Generic[T]):
    """Keeps what an asynchronous iterator raises."""

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self.failure: Exception | None = None

    async def items(self) -> AsyncIterator[T]:
        try:
            async for item in self._items:
                yield item
        except Exception as error:
            self.failure = error
            raise
