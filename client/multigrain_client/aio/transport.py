"""Calls over one asyncio channel: deadline, metadata, retries. Hides gRPC from the code above."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine
from typing import Any, Generic, TypeVar

import grpc
from grpc import aio

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

# What grpc.aio reports for a call whose request could not be written, whatever ended the call.
_UNWRITTEN = "Internal error from Core"


class AsyncTransport:
    """One channel in each event loop that makes calls, opened at its first call."""

    def __init__(self, config: ChannelConfig, timeout: float | None, policy: RetryPolicy) -> None:
        self.config = config
        self.timeout = check_timeout(timeout)
        self.policy = policy
        self.closed = False
        # A channel belongs to the event loop it is created in.
        self._channels: dict[asyncio.AbstractEventLoop, aio.Channel] = {}

    def _channel(self, method: Method[Any, Any]) -> aio.Channel:
        """Raises:
        ClientClosed: after ``close``.
        """
        if self.closed:
            raise ClientClosed(closed_before(method.name), method=method.name)
        loop = asyncio.get_running_loop()
        channel = self._channels.get(loop)
        if channel is None:
            for other in list(self._channels):
                if other.is_closed():
                    self._channels.pop(other, None)
            options = list(self.config.options)
            channel = (
                aio.insecure_channel(self.config.target, options)
                if self.config.credentials is None
                else aio.secure_channel(self.config.target, self.config.credentials, options)
            )
            self._channels[loop] = channel
        return channel

    async def close(self) -> None:
        """Cancels all calls and closes the channels.

        Those of other event loops close soon after: this does not wait for another loop, whose
        thread may wait for this one.
        """
        self.closed = True
        here = asyncio.get_running_loop()
        for loop, channel in list(self._channels.items()):
            self._channels.pop(loop, None)
            if loop is here:
                await channel.close()
            elif loop.is_running():
                closing = channel.close()
                try:
                    asyncio.run_coroutine_threadsafe(closing, loop)
                except RuntimeError:  # it has ended meanwhile, and its calls with it
                    closing.close()

    async def unary(
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
        metadata = self._metadata
        retries = UnaryRetries(
            self.policy, self.seconds(method, timeout), idempotent=method.idempotent(request)
        )
        while True:
            call: aio.UnaryUnaryMultiCallable[Request, Response]
            call = self._channel(method).unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            try:
                return await call(request, timeout=retries.remaining, metadata=metadata)
            except asyncio.CancelledError:
                self._raise_if_closed(method)
                raise
            except aio.AioRpcError as rpc_error:
                error = self.error(rpc_error, method)
                delay = retries.delay(error)
                if delay is None:
                    raise error from rpc_error
            await asyncio.sleep(delay)

    def stream(
        self, method: Method[Request, Response], request: Request, timeout: float | None = None
    ) -> AsyncGenerator[Response, None]:
        """Responses of one server stream, not retried. Closing the iterator cancels the call.

        Raises:
            MultigrainClientError: when the stream breaks.
        """
        call = self._channel(method).unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(request, timeout=check_timeout(timeout), metadata=self._metadata)
        return self._messages(call, method)

    async def upload(
        self,
        method: Method[Request, Response],
        requests: AsyncIterable[Request],
        timeout: float | None = None,
    ) -> Response:
        """One client stream, not retried. An exception of ``requests`` is raised here.

        Raises:
            MultigrainClientError: when the call fails.
        """
        guarded = _Guarded(requests)
        callable_: aio.StreamUnaryMultiCallable[Request, Response]
        callable_ = self._channel(method).stream_unary(
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
            # If the requests raise, gRPC cancels the call and only logs the reason.
            if guarded.failure is not None:
                raise guarded.failure from None
            if isinstance(error, aio.AioRpcError):
                raise self.error(status.of(error), method) from error
            self._raise_if_closed(method)
            raise

    def exchange(
        self,
        method: Method[Request, Response],
        requests: AsyncIterable[Request],
        timeout: float | None = None,
    ) -> AsyncGenerator[Response, None]:
        """Responses of one bidirectional stream, not retried. Closing the iterator cancels the
        call.

        Raises:
            MultigrainClientError: when the stream breaks.
        """
        call = self._channel(method).stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(aiter(requests), timeout=check_timeout(timeout), metadata=self._metadata)
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

    def _raise_if_closed(self, method: Method[Any, Any]) -> None:
        """gRPC reports calls of a closed channel as canceled, which the caller's task is not.

        Raises:
            ClientClosed: if the client was closed and the task is not being canceled.
        """
        task = asyncio.current_task()
        if self.closed and not (task is not None and task.cancelling()):
            raise ClientClosed(closed_during(method.name), method=method.name) from None

    @property
    def _metadata(self) -> aio.Metadata:
        return aio.Metadata(*self.config.call_metadata())

    async def _messages(
        self, call: Any, method: Method[Any, Response]
    ) -> AsyncGenerator[Response, None]:
        # `call` is both an async iterator of responses and a grpc.aio.Call.
        status = FirstStatus(call)
        try:
            async for message in call:
                yield message
        except asyncio.CancelledError:
            self._raise_if_closed(method)
            raise
        except aio.AioRpcError as rpc_error:
            raise self.error(status.of(rpc_error), method) from rpc_error
        finally:
            call.cancel()


class _Guarded(Generic[T]):
    """Keeps the exception of an asynchronous iterable."""

    def __init__(self, items: AsyncIterable[T]) -> None:
        self._items = items
        self.failure: Exception | None = None

    async def items(self) -> AsyncIterator[T]:
        try:
            async for item in self._items:
                yield item
        except Exception as error:
            self.failure = error
            raise


class FirstStatus:
    """Keeps the real status of a call that sends a stream of requests.

    A server may end such a call before the client has sent everything: it refuses, or the
    connection breaks. The write in progress then fails, and grpc.aio overwrites the status of the
    call with INTERNAL, even if the real one has already arrived (grpc issue 36066).
    """

    def __init__(self, call: Any) -> None:
        self._error: aio.AioRpcError | None = None
        call.add_done_callback(self._ended)

    def of(self, error: aio.AioRpcError) -> aio.AioRpcError:
        """``error``, or the status that it has overwritten.

        If the failed write came first, the real status never arrives: UNAVAILABLE, because all
        that is known is that the connection broke.
        """
        if not _unwritten(error):
            return error
        if self._error is not None:
            return self._error
        return aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE,
            error.initial_metadata(),
            error.trailing_metadata(),
            "the connection ended while a request was being sent",
            error.debug_error_string(),
        )

    def _ended(self, call: Any) -> None:
        code = _result(call.code())
        if code is grpc.StatusCode.OK:
            return
        error = aio.AioRpcError(
            code,
            aio.Metadata(),
            _result(call.trailing_metadata()),
            _result(call.details()),
        )
        if not _unwritten(error):
            self._error = error


def _unwritten(error: aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _UNWRITTEN


def _result(finished: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not wait, as those of a finished call."""
    try:
        finished.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    finished.close()
    raise RuntimeError("a finished call has no status yet")
