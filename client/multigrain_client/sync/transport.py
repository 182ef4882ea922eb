"""Blocking calls over one channel: deadline, metadata, retries. Hides gRPC from the code above."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import grpc

from multigrain_client.channel import ChannelConfig
from multigrain_client.errors import (
    ClientClosed,
    MultigrainClientError,
    closed_before,
    closed_during,
    from_rpc,
)
from multigrain_client.methods import Method, Request, Response
from multigrain_client.retry import RetryPolicy, UnaryRetries, check_timeout

T = TypeVar("T")


class Transport:
    """One channel, which connects at the first call. Safe to share between threads, and usable in
    a forked process, which gets a channel of its own."""

    def __init__(self, config: ChannelConfig, timeout: float | None, policy: RetryPolicy) -> None:
        self.config = config
        self.timeout = check_timeout(timeout)
        self.policy = policy
        self.closed = False
        # By process: a fork must neither write to its parent's connection nor close it.
        self._channels = {os.getpid(): self._open()}

    def _open(self) -> grpc.Channel:
        options = list(self.config.options)
        if self.config.credentials is None:
            return grpc.insecure_channel(self.config.target, options)
        return grpc.secure_channel(self.config.target, self.config.credentials, options)

    def _channel(self, method: Method[Any, Any]) -> grpc.Channel:
        """Raises:
        ClientClosed: after ``close``.
        """
        if self.closed:
            raise ClientClosed(closed_before(method.name), method=method.name)
        process = os.getpid()
        channel = self._channels.get(process)
        if channel is None:
            opened = self._open()
            channel = self._channels.setdefault(process, opened)
            if channel is not opened:
                # Another thread was first. No lock: a fork could copy one that is held.
                opened.close()
        return channel

    def close(self) -> None:
        """Cancels all calls and closes the connections."""
        self.closed = True
        channel = self._channels.get(os.getpid())
        if channel is not None:
            channel.close()

    def unary(
        self, method: Method[Request, Response], request: Request, timeout: float | None = None
    ) -> Response:
        """Calls until there is a response, an error that is not retried, or no time left.

        Args:
            method: the RPC.
            request: its request.
            timeout: seconds for all attempts together; None = the method's or client's default.

        Raises:
            MultigrainClientError: of the last attempt.
        """
        metadata = self.config.call_metadata()
        retries = UnaryRetries(
            self.policy, self.seconds(method, timeout), idempotent=method.idempotent(request)
        )
        while True:
            call: grpc.UnaryUnaryMultiCallable[Request, Response]
            call = self._channel(method).unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            try:
                with self._unless_closed(method):
                    return call(request, timeout=retries.remaining, metadata=metadata)
            except grpc.RpcError as rpc_error:
                error = self.error(rpc_error, method)
                delay = retries.delay(error)
                if delay is None:
                    raise error from rpc_error
            time.sleep(delay)

    def stream(
        self, method: Method[Request, Response], request: Request, timeout: float | None = None
    ) -> Generator[Response, None, None]:
        """Responses of one server stream, not retried. Closing the iterator cancels the call.

        Raises:
            MultigrainClientError: when the stream breaks.
        """
        start = self._channel(method).unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        with self._unless_closed(method):
            call = start(
                request, timeout=check_timeout(timeout), metadata=self.config.call_metadata()
            )
        return self._messages(call, method)

    def upload(
        self,
        method: Method[Request, Response],
        requests: Iterable[Request],
        timeout: float | None = None,
    ) -> Response:
        """One client stream, not retried. An exception of ``requests`` is raised here.

        Raises:
            MultigrainClientError: when the call fails.
        """
        guarded = _Guarded(requests)
        call: grpc.StreamUnaryMultiCallable[Request, Response]
        call = self._channel(method).stream_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            with self._unless_closed(method):
                response = call(
                    iter(guarded),
                    timeout=self.seconds(method, timeout),
                    metadata=self.config.call_metadata(),
                )
        except grpc.RpcError as rpc_error:
            if guarded.failure is not None:
                raise guarded.failure from None
            raise self.error(rpc_error, method) from rpc_error
        return response

    def exchange(
        self,
        method: Method[Request, Response],
        requests: Iterable[Request],
        timeout: float | None = None,
    ) -> Generator[Response, None, None]:
        """Responses of one bidirectional stream, not retried. gRPC iterates over ``requests`` in
        its own thread. Closing the iterator cancels the call.

        Raises:
            MultigrainClientError: when the stream breaks.
        """
        start = self._channel(method).stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        with self._unless_closed(method):
            call = start(
                iter(requests), timeout=check_timeout(timeout), metadata=self.config.call_metadata()
            )
        return self._messages(call, method)

    def seconds(self, method: Method[Any, Any], timeout: float | None) -> float | None:
        """The timeout of a call: its own, the method's or the client's.

        Raises:
            InvalidRequest: for its own, see ``check_timeout``.
        """
        if timeout is not None:
            return check_timeout(timeout)
        return method.timeout if method.timeout is not None else self.timeout

    def error(self, error: grpc.RpcError, method: Method[Any, Any]) -> MultigrainClientError:
        if self.closed and error.code() is grpc.StatusCode.CANCELLED:
            return ClientClosed(closed_during(method.name), method=method.name)
        return from_rpc(error, method.name, self.config.shown_target, self.config.proxy)

    @contextmanager
    def _unless_closed(self, method: Method[Any, Any]) -> Iterator[None]:
        """Another thread may close the channel just before a call, which is a ValueError then.

        Raises:
            ClientClosed: in this case.
        """
        try:
            yield
        except ValueError:
            if self.closed:
                raise ClientClosed(closed_before(method.name), method=method.name) from None
            raise

    def _messages(
        self, call: Any, method: Method[Any, Response]
    ) -> Generator[Response, None, None]:
        # `call` is both an iterator of responses and a grpc.Call.
        try:
            yield from call
        except grpc.RpcError as rpc_error:
            raise self.error(rpc_error, method) from rpc_error
        finally:
            call.cancel()


class _Guarded(Generic[T]):
    """Keeps the exception of an iterable: gRPC, which iterates in its own thread, only logs it."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self._items
        except Exception as error:
            self.failure = error
            raise
