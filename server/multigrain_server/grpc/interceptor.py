"""What every call gets: request id, authorization, log line, metrics, and errors as status."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server import service_names
from multigrain_server.access.access import Access
from multigrain_server.access.client import Origin, host, origin
from multigrain_server.convert.errors import internal_error, wire_error
from multigrain_server.grpc.connections import ConnectionGuard
from multigrain_server.grpc.drain import InFlightCalls
from multigrain_server.grpc.message_reads import AUTHORIZED, OPEN, MessageReads
from multigrain_server.grpc.metadata_limit import MAX_ENTRIES
from multigrain_server.grpc.unfinished_messages import (
    Read,
    UnfinishedMessages,
    received_size,
)
from multigrain_server.log_limits import FailedCallLines
from multigrain_server.metrics.requests import RequestMetrics
from multigrain_server.serving.pacing import Pacing
from multigrain_server.tracing.call import CallTrace, Tracing, call_trace

_log = structlog.get_logger(__name__)
_standard_log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
_GOOD_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
# Characters of a client's request id that are logged.
_LOGGED_ID = 128
# gRPC reports a call without a deadline as one of centuries.
_NO_DEADLINE_SECONDS = 10 * 365 * 86_400
# Once a stream is refused, messages are discarded until none comes for this long, within a limit.
_QUIET_SECONDS = 0.1
_DISCARD_SECONDS = 2.0
# The same for an upload: its client reads no response before it has sent everything, so a pause
# only means that its disk or machine is slow.
_UPLOAD_QUIET_SECONDS = 2.0
_UPLOAD_DISCARD_SECONDS = 10.0
_FREQUENT = frozenset(
    (
        *(service_names.EMBED, service_names.CLASSIFY, service_names.MODEL_INFER),
        *(service_names.SEARCH, service_names.ADD_ITEMS),
    )
)
# Streams without end, whose clients can continue on another server.
_RESUMABLE = frozenset(
    (
        *(service_names.EMBED_STREAM, service_names.MODEL_STREAM_INFER),
        service_names.ADD_ITEMS_STREAM,
    )
)

# Messages of these methods carry images or archives, and may be as large as gRPC accepts.
_LARGE = _FREQUENT | _RESUMABLE | {service_names.IMPORT_MODEL}
_MAX_BYTES = 4 << 20
# Those of services that answer callers without a token have a name in them.
_SMALL_SERVICES = ("/grpc.health.", "/grpc.reflection.")
_SMALL_MAX_BYTES = 4096
# Refused streams that are discarded at a time if their callers were not authorized.
_MAX_DISCARDED = 1

_Metadata = Sequence[tuple[str, str | bytes]]
_metadata: ContextVar[_Metadata] = ContextVar("metadata", default=())

_END = object()

Context = grpc.aio.ServicerContext[Any, Any]
# Gets the request, or its messages; returns a unary response, and writes streamed ones.
Run = Callable[[Any, Context], Awaitable[Any]]


def log_request_id(request_id: str) -> None:
    """Adds the request id in a message to the log lines of the call."""
    if request_id:
        structlog.contextvars.bind_contextvars(caller_request_id=request_id[:_LOGGED_ID])


def deadline_ns(context: Context, now_ns: int) -> int:
    """The deadline of the call on CLOCK_MONOTONIC in ns; 0 = none."""
    seconds = context.time_remaining()
    if seconds is None or seconds > _NO_DEADLINE_SECONDS:
        return 0
    return now_ns + max(1, int(seconds * 1e9))


@dataclass(frozen=True)
class _Unreadable:
    """A message that is larger than ``limit``, or without one cannot be parsed; sizes in bytes."""

    size: int
    limit: int | None = None


def max_message_bytes(method: str) -> int | None:
    """Largest message of a method, where that is less than ``grpc.max_message_mib``."""
    if method in _LARGE:
        return None
    return _SMALL_MAX_BYTES if method.startswith(_SMALL_SERVICES) else _MAX_BYTES


def reading(
    deserialize: Callable[[bytes], Any] | None, limit: int | None = None
) -> Callable[[bytes], Any]:
    """A deserializer that leaves errors to ``readable``.

    gRPC would answer UNKNOWN to a request that cannot be parsed, though the client is at fault.

    Args:
        deserialize: parses a message.
        limit: its largest size in bytes; None = any.
    """

    def read(data: bytes) -> Any:
        received_size.set(len(data))
        if limit is not None and len(data) > limit:
            return _Unreadable(len(data), limit)
        try:
            return data if deserialize is None else deserialize(data)
        except Exception:  # DecodeError, and others from the pure Python parser
            return _Unreadable(len(data))

    return read


def readable(message: Any) -> Any:
    """The message. Raises INVALID_FIELD if it could not be parsed or is too large."""
    if not isinstance(message, _Unreadable):
        return message
    if message.limit is None:
        raise MultigrainError(
            ErrorKind.INVALID_FIELD,
            "cannot parse the request: malformed bytes, or the client has an incompatible schema",
        )
    raise MultigrainError(
        ErrorKind.INVALID_FIELD,
        f"the request has {message.size} bytes, this method accepts {message.limit}",
    )


class Incoming:
    """The messages of one client stream, in order.

    Canceling a task that waits for a message loses none. When a stream ends while a message is
    being written, some clients (grpc.aio) report that the write failed, and not the status. So a
    server that refuses a stream first discards what is still on its way.

    Args:
        messages: the iterator that gRPC passes to a handler.
        upload: whether one response follows all messages.
    """

    def __init__(self, messages: AsyncIterator[Any], *, upload: bool = False) -> None:
        self._messages = messages
        self._quiet_seconds = _UPLOAD_QUIET_SECONDS if upload else _QUIET_SECONDS
        self._discard_seconds = _UPLOAD_DISCARD_SECONDS if upload else _DISCARD_SECONDS
        #: Waits until the next message may be read.
        self.turn: Callable[[], Awaitable[None]] | None = None
        #: Runs while a message is read.
        self.reading: Callable[[], AbstractContextManager[Read]] | None = None
        self._refused = False
        # A task of its own: gRPC could not continue reading after a cancellation.
        self._next: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> Any:
        if self._next is None:
            self._next = asyncio.create_task(self._read())
        try:
            message = await asyncio.shield(self._next)
        except MultigrainError:  # too many wait for their turn
            self._next = None
            raise
        if message is _END:
            raise StopAsyncIteration
        self._next = None
        return message

    async def discard(self) -> None:
        """Reads until the client pauses or has sent everything, for some seconds at most."""
        if self._refused:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + self._discard_seconds
        while loop.time() < until:
            try:
                async with asyncio.timeout(self._quiet_seconds):
                    await anext(self)
            except (TimeoutError, StopAsyncIteration, MultigrainError):
                return

    def close(self) -> None:
        """Stops reading."""
        if self._next is not None:
            self._next.cancel()

    async def _read(self) -> Any:
        if self.turn is not None:
            await self.turn()
        if self.reading is None:
            return await anext(self._messages, _END)
        with self.reading() as read:
            try:
                return await anext(self._messages, _END)
            except asyncio.CancelledError:
                if read.refusal is None:
                    raise
                # What is still on its way would be held as well.
                self._refused = True
                raise read.refusal from None


@dataclass(frozen=True)
class _Call:
    """A method as its client sees it."""

    method: str
    sends_stream: bool
    streams: bool
    # One response follows all messages.
    upload: bool


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of unary and streaming calls.

    Args:
        calls: counts the calls and refuses them while the server drains.
        metrics: counts and durations.
        access: authorization.
        tracing: makes traces; None = off.
        connections: ends connections of callers who abuse them; None = none are ended.
        pacing: delays calls of clients whose images come to nothing; None = none are delayed.
        unfinished: ends streams that hold too much of unfinished messages; None = none are ended.
    """

    def __init__(
        self,
        calls: InFlightCalls,
        metrics: RequestMetrics,
        access: Access,
        tracing: Tracing | None = None,
        connections: ConnectionGuard | None = None,
        pacing: Pacing | None = None,
        unfinished: UnfinishedMessages | None = None,
    ) -> None:
        self._calls = calls
        self._metrics = metrics
        self._wrapped: dict[str, Any] = {}
        self._access = access
        self._tracing = tracing
        self._reads = MessageReads(AUTHORIZED)
        self._connections = connections
        self._pacing = pacing
        self._unfinished = unfinished
        self._open_reads = (
            MessageReads(OPEN, connections.end, connections.received_bytes)
            if connections is not None
            else MessageReads(OPEN)
        )
        self._discarded = 0
        self._lines = FailedCallLines()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        # For the handler, which runs in the same task: gRPC makes a copy each time it is asked.
        _metadata.set(handler_call_details.invocation_metadata or ())
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        handle: Any = next(
            found
            for found in (
                handler.unary_unary,
                handler.unary_stream,
                handler.stream_unary,
                handler.stream_stream,
            )
            if found is not None
        )
        read: Any = self._all_readable if handler.request_streaming else self._readable
        if method in _RESUMABLE:
            read = self._all_readable_until_drained
        rules = _Call(
            method,
            sends_stream=bool(handler.request_streaming),
            streams=bool(handler.request_streaming or handler.response_streaming),
            upload=not handler.response_streaming,
        )

        async def write_all(received: Any, context: Context) -> None:
            answers = handle(read(received), context)
            if not hasattr(answers, "__aiter__"):
                # A handler that writes to the context itself (Watch of the health service).
                await answers
                return
            try:
                async for answer in answers:
                    await context.write(answer)
            finally:
                await answers.aclose()

        def answer(received: Any, context: Context) -> Any:
            return handle(read(received), context)

        run: Run = write_all if handler.response_streaming else answer

        async def call(messages: AsyncIterator[Any], context: Context) -> Any:
            return await self._call(rules, run, messages, context)

        # All are request-streaming for gRPC, which reads the message of other calls whole before
        # it calls the handler, whoever sends it.
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        # The number of entries is bounded: only methods that exist get here.
        self._wrapped[method] = make(
            call,
            request_deserializer=reading(handler.request_deserializer, max_message_bytes(method)),
            response_serializer=passthrough_bytes(handler.response_serializer),
        )
        return self._wrapped[method]

    async def run(
        self, method: str, handler: Run, context: Context, metadata: _Metadata, *, streams: bool
    ) -> Any:
        """Runs a call that did not come by gRPC, with all that other calls get.

        Args:
            method: ``/package.Service/Method``, whose role, limits, metrics and log lines it has.
            handler: gets the request, which ``context.read`` returns.
            context: what the handler and this class use of a gRPC context.
            metadata: as gRPC's, with keys in lower case.
            streams: whether the response is a stream.

        Raises:
            grpc.aio.AbortError: after ``context.abort`` was called.
        """
        _metadata.set(metadata)
        rules = _Call(method, sends_stream=False, streams=streams, upload=False)
        return await self._call(rules, handler, None, context)

    def _readable(self, message: Any) -> Any:
        """The message, checked by ``readable``; if it is not, its bytes came to nothing."""
        if isinstance(message, _Unreadable) and self._pacing is not None:
            self._pacing.count_unreadable(origin.get().client, message.size)
        return readable(message)

    async def _all_readable(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for message in messages:
            yield self._readable(message)

    def _all_readable_until_drained(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        return self._all_readable(self._calls.incoming(messages))

    async def _call(
        self, rules: _Call, run: Run, messages: AsyncIterator[Any] | None, context: Context
    ) -> Any:
        """Runs a handler, which gets the request, or its messages."""
        began = time.perf_counter()
        method = rules.method
        incoming = None
        if rules.sends_stream:
            assert messages is not None
            incoming = Incoming(messages, upload=rules.upload)
        metadata = _metadata.get()
        too_many = len(metadata) > MAX_ENTRIES
        if too_many:
            metadata = metadata[:MAX_ENTRIES]
            _metadata.set(())
        request_id = _request_id(metadata)
        # In the context of gRPC's task for this call, which ends with it.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        trace: CallTrace | None = None
        code, reason, counted, authorized = grpc.StatusCode.OK, "", False, False
        peer = context.peer() or ""
        client = host(peer)
        try:
            if too_many:
                if self._connections is not None:
                    self._connections.end_soon(peer)
                raise MultigrainError(
                    ErrorKind.INVALID_FIELD, f"a call has at most {MAX_ENTRIES} metadata entries"
                )
            stream_from = peer if rules.streams else ""
            with self._access.enter(method, metadata, stream_from=stream_from) as token_name:
                authorized = True
                client = token_name or client
                origin.set(Origin(client, peer))
                if self._connections is not None:
                    if self._is_trusted(method, token_name):
                        self._connections.authorize(peer)
                    else:
                        self._connections.answer(peer)
                if token_name:
                    structlog.contextvars.bind_contextvars(token=token_name)
                if self._tracing is not None:
                    trace = self._tracing.begin(method, tuple(metadata), request_id)
                    call_trace.set(trace)
                counted = self._calls.enter(method)
                if incoming is not None:
                    if method in _LARGE:
                        incoming.turn = partial(self._stream_turn, method, client)
                        if self._unfinished is not None:
                            incoming.reading = partial(self._unfinished.reading, client, peer)
                    return await run(incoming, context)
                message = await self._read(rules, client, token_name, peer, context)
                began = time.perf_counter()
                return await run(message, context)
        except asyncio.CancelledError:
            # The client canceled, or its deadline passed.
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _code(context)
            raise
        except grpc.aio.BaseError:
            # The client canceled, or the server stopped, while an answer was being sent.
            code = grpc.StatusCode.CANCELLED
            raise asyncio.CancelledError from None
        except Exception as error:  # the client must get a status for any error
            if not isinstance(error, MultigrainError):
                _log.exception("call failed", method=method)
                error = internal_error(request_id)
            wire = wire_error(error, request_id)
            code, reason = wire.code, wire.details
            trailing = ((REQUEST_ID, request_id), *wire.trailing_metadata)
            if not authorized and self._connections is not None:
                self._connections.answer(peer)
            if incoming is not None:
                await self._discard(incoming, authorized=authorized, peer=peer)
            try:
                await context.abort(code, wire.details, trailing)
            except grpc.aio.InternalError:
                # The client canceled, or its deadline passed, while this was being sent.
                raise asyncio.CancelledError from None
        finally:
            if incoming is not None:
                incoming.close()
            if counted:
                self._calls.leave()
            seconds = time.perf_counter() - began
            self._metrics.observe(method, code.name, seconds)
            if trace is not None:
                trace.end(code.name, reason)
            level = _level(method, code)
            # Building a line that is then dropped would cost as much as writing it.
            if _standard_log.isEnabledFor(level) and (
                level < logging.WARNING or self._lines.allow(code.name, client)
            ):
                _log.log(
                    level,
                    "call",
                    method=method,
                    code=code.name,
                    seconds=round(seconds, 6),
                    **({"reason": reason} if reason else {}),
                )

    async def _stream_turn(self, method: str, client: str) -> None:
        """Waits until the next message of a client's stream may be read."""
        if self._pacing is not None and method in _RESUMABLE:
            await self._pacing.turn(client)
        if self._unfinished is not None:
            await self._unfinished.turn(client)

    def _is_trusted(self, method: str, token_name: str) -> bool:
        """Whether a call shows that its caller may use the daemon, beyond a health check."""
        if self._access.needs_tokens:
            return bool(token_name)
        return not method.startswith(_SMALL_SERVICES)

    async def _read(
        self, rules: _Call, client: str, token_name: str, peer: str, context: Context
    ) -> Any:
        """The message of a request."""
        if not token_name and self._access.needs_tokens:
            return await self._open_reads.read(peer, context.read)
        pacing = self._pacing
        # Probes share the name of a host with all that have no tokens there.
        no_probe = token_name and not rules.method.startswith(_SMALL_SERVICES)
        if pacing is not None and (
            rules.method in _FREQUENT or (no_probe and pacing.sends_unreadable(client))
        ):
            await pacing.turn(client)
        if self._unfinished is None:
            return await self._reads.read(client, context.read)
        with self._unfinished.receiving(client, peer):
            return await self._reads.read(client, context.read)

    async def _discard(self, incoming: Incoming, *, authorized: bool, peer: str) -> None:
        """Discards the messages of a refused stream.

        Those of a caller who was not authorized only as long as nobody else's are discarded: what
        is read is held in memory.
        """
        if authorized:
            await incoming.discard()
            return
        if self._discarded >= _MAX_DISCARDED:
            return
        self._discarded += 1
        try:
            with self._connections.discarding(peer) if self._connections else nullcontext():
                await incoming.discard()
        finally:
            self._discarded -= 1


def _level(method: str, code: grpc.StatusCode) -> int:
    """The level of a call's log line.

    DEBUG for what comes hundreds of times per second, which metrics count: inference calls that
    succeed or are refused under overload (admission logs the overload itself).
    """
    if code is grpc.StatusCode.CANCELLED or method.startswith("/grpc.health"):
        return logging.DEBUG
    if code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED) and method in _FREQUENT:
        return logging.DEBUG
    return logging.INFO if code is grpc.StatusCode.OK else logging.WARNING


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The client's request id if it is short and printable, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _GOOD_ID.match(value):
            return value
    return secrets.token_hex(8)


def _code(context: Context) -> grpc.StatusCode:
    """The status with which a handler aborted the call itself."""
    number = context.code()
    for code in grpc.StatusCode:
        if number in (code, code.value[0]):
            return code
    return grpc.StatusCode.UNKNOWN


def passthrough_bytes(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """A serializer that accepts encoded messages too, and leaves them as they are.

    None (of a handler whose messages are bytes anyway) stays None.
    """
    if serialize is None:
        return None

    def encode(message: Any) -> bytes:
        return message if isinstance(message, bytes) else serialize(message)

    return encode
