"""What the interceptor does for every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1 import model_pb2
from multigrain.v1.job_pb2 import JobEvent
from multigrain_server.access.access import Access
from multigrain_server.access.config import AccessConfig
from multigrain_server.app import App
from multigrain_server.grpc import interceptor as interceptor_module
from multigrain_server.grpc.drain import InFlightCalls
from multigrain_server.grpc.interceptor import (
    CallInterceptor,
    Incoming,
    deadline_ns,
    passthrough_bytes,
)
from multigrain_server.metrics.requests import RequestMetrics
from multigrain_server.serving.pacing import Pacing
from tests.server.grpc.refusal import INVALID, refusal
from tests.server.grpc.serving import serving


def details_of(method: str) -> Any:
    """What gRPC tells an interceptor of a call."""
    return SimpleNamespace(method=method, invocation_metadata=())


class GoneContext:
    """The context of a call whose client has gone, so that no status can be sent."""

    async def read(self) -> bytes:
        return b""

    def invocation_metadata(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5"

    async def abort(self, *status: object) -> None:
        raise grpc.aio.InternalError("Failed execute_batch")


async def test_cancellation_while_an_error_is_sent_is_no_server_error() -> None:
    calls, registry = InFlightCalls(), CollectorRegistry()
    interceptor = CallInterceptor(calls, RequestMetrics(registry), Access(AccessConfig()))

    async def too_late(request: object, context: object) -> None:
        raise MultigrainError(ErrorKind.DEADLINE, "the deadline passed")

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(too_late)

    details = SimpleNamespace(
        method="/multigrain.v1.EmbeddingService/Embed", invocation_metadata=None
    )
    wrapped = await interceptor.intercept_service(handler, details)
    with pytest.raises(asyncio.CancelledError):
        await wrapped.stream_unary(None, GoneContext())
    assert calls.in_flight == 0
    labels = {"rpc": "EmbeddingService/Embed", "code": "DEADLINE_EXCEEDED"}
    assert registry.get_sample_value("multigrain_requests_total", labels) == 1


async def test_a_client_that_leaves_while_an_answer_is_written_has_canceled() -> None:
    calls, registry = InFlightCalls(), CollectorRegistry()
    interceptor = CallInterceptor(calls, RequestMetrics(registry), Access(AccessConfig()))
    ended: list[str] = []

    class Leaves(GoneContext):
        async def write(self, _answer: bytes) -> None:
            raise grpc.aio.InternalError("Failed execute_batch")

    async def answers(_messages: object, _context: object) -> AsyncIterator[bytes]:
        try:
            yield b"first"
        finally:
            ended.append("answers")

    async def messages() -> AsyncIterator[bytes]:
        yield b""

    async def handler(_details: object) -> Any:
        return grpc.stream_stream_rpc_method_handler(answers)

    method = "/multigrain.v1.EmbeddingService/EmbedStream"
    wrapped = await interceptor.intercept_service(handler, details_of(method))
    with pytest.raises(asyncio.CancelledError):
        await wrapped.stream_stream(messages(), Leaves())
    assert ended == ["answers"]
    assert calls.in_flight == 0
    labels = {"rpc": "EmbeddingService/EmbedStream", "code": "CANCELLED"}
    assert registry.get_sample_value("multigrain_requests_total", labels) == 1


class TurnsTaken(Pacing):
    """Counts who asks for a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    async def turn(self, client: str) -> None:
        self.taken.append(client)


@pytest.mark.parametrize(
    ("method", "turns"),
    [
        ("EmbeddingService/Embed", 1),
        ("EmbeddingService/Classify", 1),
        ("ModelService/ListModels", 0),
    ],
)
async def test_a_request_with_images_is_read_in_its_clients_turn(method: str, turns: int) -> None:
    pacing = TurnsTaken()
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Access(AccessConfig()), pacing=pacing
    )

    async def echo(request: bytes, _context: object) -> bytes:
        return request

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(echo)

    class Reads(GoneContext):
        async def read(self) -> bytes:
            assert pacing.taken == turns * ["127.0.0.1"]
            return b"request"

    details = details_of(f"/multigrain.v1.{method}")
    wrapped = await interceptor.intercept_service(handler, details)
    assert await wrapped.stream_unary(None, Reads()) == b"request"


@pytest.mark.parametrize("method", ["EmbeddingService/Embed", "ModelService/ListModels"])
@pytest.mark.parametrize("streaming", [False, True], ids=["request", "stream"])
async def test_messages_that_cannot_be_parsed_are_counted(method: str, streaming: bool) -> None:
    pacing = Pacing()
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Access(AccessConfig()), pacing=pacing
    )

    def parse(data: bytes) -> bytes:
        raise ValueError("malformed")

    async def echo(request: Any, _context: object) -> bytes:
        return b"".join([message async for message in request])

    async def handler(_details: object) -> Any:
        if streaming:
            return grpc.stream_unary_rpc_method_handler(echo, request_deserializer=parse)
        return grpc.unary_unary_rpc_method_handler(echo, request_deserializer=parse)

    wrapped = await interceptor.intercept_service(handler, details_of(f"/multigrain.v1.{method}"))

    class Reads(GoneContext):
        async def read(self) -> Any:
            return wrapped.request_deserializer(bytes(5 << 20))

    async def messages() -> AsyncIterator[Any]:
        yield wrapped.request_deserializer(bytes(5 << 20))

    assert not pacing.sends_unreadable("127.0.0.1")
    with pytest.raises(asyncio.CancelledError):  # the status cannot be sent
        await wrapped.stream_unary(messages(), Reads())
    assert pacing.sends_unreadable("127.0.0.1")


@pytest.mark.parametrize(
    ("method", "token", "turns"),
    [
        ("/multigrain.v1.ModelService/ListModels", "reader", ["reader"]),
        ("/multigrain.v1.ModelService/ListModels", "", []),
        ("/grpc.health.v1.Health/Check", "reader", []),
    ],
)
async def test_who_sends_messages_that_cannot_be_parsed_waits_with_all_but_probes(
    method: str, token: str, turns: list[str]
) -> None:
    class Named(Access):
        @contextmanager
        def enter(self, *_args: object, **_options: object) -> Iterator[str]:
            yield token

    pacing = TurnsTaken()
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Named(AccessConfig()), pacing=pacing
    )

    async def echo(request: bytes, _context: object) -> bytes:
        return request

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(echo)

    wrapped = await interceptor.intercept_service(handler, details_of(method))
    await wrapped.stream_unary(None, GoneContext())
    assert pacing.taken == []
    pacing.count_unreadable(token or "127.0.0.1", 1)
    await wrapped.stream_unary(None, GoneContext())
    assert pacing.taken == turns


async def test_each_message_of_a_stream_of_images_is_read_in_its_clients_turn() -> None:
    pacing = TurnsTaken()
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Access(AccessConfig()), pacing=pacing
    )
    written: list[bytes] = []

    class Writes(GoneContext):
        async def write(self, answer: bytes) -> None:
            written.append(answer)

    async def echo(messages: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message

    async def messages() -> AsyncIterator[bytes]:
        for number in range(3):
            assert len(pacing.taken) == number + 1
            yield bytes([number])

    async def handler(_details: object) -> Any:
        return grpc.stream_stream_rpc_method_handler(echo)

    details = details_of("/multigrain.v1.EmbeddingService/EmbedStream")
    wrapped = await interceptor.intercept_service(handler, details)
    await wrapped.stream_stream(messages(), Writes())
    assert written == [b"\0", b"\1", b"\2"]


async def test_a_stream_without_a_turn_gets_the_reason_as_its_status() -> None:
    class NoTurns(Pacing):
        async def turn(self, client: str) -> None:
            raise MultigrainError(ErrorKind.OVERLOADED, "too many wait", retry_after=1.0)

    interceptor = CallInterceptor(
        InFlightCalls(),
        RequestMetrics(CollectorRegistry()),
        Access(AccessConfig()),
        pacing=NoTurns(),
    )
    statuses: list[object] = []

    class Aborts(GoneContext):
        async def abort(self, *status: object) -> None:
            statuses.append(status[0])
            raise grpc.aio.AbortError

        def code(self) -> object:
            return statuses[-1]

    async def echo(messages: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message

    async def messages() -> AsyncIterator[bytes]:
        yield b"never read"

    async def handler(_details: object) -> Any:
        return grpc.stream_stream_rpc_method_handler(echo)

    details = details_of("/multigrain.v1.EmbeddingService/EmbedStream")
    wrapped = await interceptor.intercept_service(handler, details)
    with pytest.raises(grpc.aio.AbortError):
        await wrapped.stream_stream(messages(), Aborts())
    assert statuses == [grpc.StatusCode.RESOURCE_EXHAUSTED]


class RefusedContext(GoneContext):
    """The context of a call that is refused; calls ``aborted`` when the status is sent."""

    def __init__(self, aborted: Callable[[], None]) -> None:
        self._aborted = aborted

    async def abort(self, *status: object) -> None:
        self._aborted()
        raise grpc.aio.AbortError


@pytest.mark.parametrize("drains", [False, True], ids=["wrong request", "draining"])
async def test_refused_stream_is_discarded_before_the_status_is_sent(
    drains: bool,
) -> None:
    calls = InFlightCalls()
    interceptor = CallInterceptor(
        calls, RequestMetrics(CollectorRegistry()), Access(AccessConfig())
    )
    read: list[int] = []
    read_before_abort: list[int] = []

    async def messages() -> AsyncIterator[bytes]:
        for number in range(50):
            await asyncio.sleep(0)
            read.append(number)
            yield b""

    async def wrong(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for _ in requests:
            raise MultigrainError.field("images", "is empty")
        yield b""

    async def handler(_details: object) -> Any:
        return grpc.stream_stream_rpc_method_handler(wrong)

    if drains:
        await calls.drain(0)
    details = SimpleNamespace(
        method="/multigrain.v1.EmbeddingService/EmbedStream", invocation_metadata=None
    )
    wrapped = await interceptor.intercept_service(handler, details)
    context = RefusedContext(lambda: read_before_abort.extend(read))
    with pytest.raises(grpc.aio.AbortError):
        await wrapped.stream_stream(messages(), context)
    assert read_before_abort == list(range(50))
    assert calls.in_flight == 0


@pytest.mark.parametrize(
    ("method", "error", "level"),
    [
        ("/multigrain.v1.JobService/GetJob", None, "info"),
        ("/multigrain.v1.JobService/GetJob", ErrorKind.NOT_FOUND, "warning"),
        ("/multigrain.v1.JobService/GetJob", ErrorKind.OVERLOADED, "warning"),
        ("/multigrain.v1.JobService/GetJob", ErrorKind.CANCELLED, "debug"),
        ("/multigrain.v1.EmbeddingService/Embed", None, "debug"),
        ("/multigrain.v1.EmbeddingService/Embed", ErrorKind.OVERLOADED, "debug"),
        ("/multigrain.v1.EmbeddingService/Embed", ErrorKind.NOT_FOUND, "warning"),
        ("/multigrain.v1.EmbeddingService/EmbedStream", None, "info"),
        ("/inference.GRPCInferenceService/ModelInfer", None, "debug"),
        ("/grpc.health.v1.Health/Check", None, "debug"),
        ("/grpc.health.v1.Health/Check", ErrorKind.NOT_FOUND, "debug"),
    ],
)
async def test_log_level_of_a_call(
    caplog: pytest.LogCaptureFixture, method: str, error: ErrorKind | None, level: str
) -> None:
    caplog.set_level(logging.DEBUG, interceptor_module.__name__)
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Access(AccessConfig())
    )

    async def handle(_request: object, _context: object) -> bytes:
        if error is not None:
            raise MultigrainError(error, "no")
        return b""

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(handle)

    details = details_of(method)
    wrapped = await interceptor.intercept_service(handler, details)
    with capture_logs() as lines, suppress(grpc.aio.AbortError):
        await wrapped.stream_unary(None, RefusedContext(lambda: None))
    assert [(line["event"], line["log_level"]) for line in lines] == [("call", level)]


async def test_no_line_is_built_below_the_level_that_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    interceptor = CallInterceptor(
        InFlightCalls(), RequestMetrics(CollectorRegistry()), Access(AccessConfig())
    )

    async def handle(_request: object, _context: object) -> bytes:
        return b""

    async def handler(_details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(handle)

    details = SimpleNamespace(
        method="/multigrain.v1.EmbeddingService/Embed", invocation_metadata=None
    )
    wrapped = await interceptor.intercept_service(handler, details)
    caplog.set_level(logging.INFO, interceptor_module.__name__)
    with capture_logs() as lines:
        await wrapped.stream_unary(None, GoneContext())
    assert lines == []


NOW = 1_000_000_000


@pytest.mark.parametrize(
    ("remaining", "deadline"),
    [
        (2.5, NOW + 2_500_000_000),
        (None, 0),
        (9.2e9, 0),  # what gRPC reports without a deadline
        (-0.1, NOW + 1),  # already past, not missing
    ],
)
def test_deadline_is_on_the_monotonic_clock(remaining: float | None, deadline: int) -> None:
    context = SimpleNamespace(time_remaining=lambda: remaining)
    assert deadline_ns(context, NOW) == deadline  # type: ignore[arg-type]


class Numbers:
    """Yields ``ready`` numbers at once, and then ends or blocks forever."""

    def __init__(self, ready: int, *, ends: bool) -> None:
        self.read = 0
        self._ready = ready
        self._ends = ends

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self._ready):
            await asyncio.sleep(0)
            self.read += 1
            yield number
        if not self._ends:
            await asyncio.Event().wait()


async def test_canceling_a_read_loses_no_message() -> None:
    sent: asyncio.Queue[int] = asyncio.Queue()

    async def messages() -> AsyncIterator[int]:
        while True:
            yield await sent.get()

    incoming = Incoming(messages())
    waiting = asyncio.ensure_future(anext(incoming))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for number in range(3):
        sent.put_nowait(number)
    assert [await anext(incoming) for _ in range(3)] == [0, 1, 2]
    incoming.close()


@pytest.mark.parametrize("ends", [True, False])
async def test_messages_in_transit_are_discarded(ends: bool) -> None:
    numbers = Numbers(50, ends=ends)
    incoming = Incoming(aiter(numbers))
    assert await anext(incoming) == 0
    async with asyncio.timeout(60):
        await incoming.discard()
    assert numbers.read == 50
    incoming.close()


async def test_discarding_an_endless_stream_ends() -> None:
    async def endless() -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(0)
            yield 1

    incoming = Incoming(endless())
    async with asyncio.timeout(60):
        await incoming.discard()
    incoming.close()


async def test_client_of_a_refused_upload_gets_the_reason(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    start = model_pb2.ImportModelRequest(start=model_pb2.ImportModelRequest.Start(name="new"))
    large = model_pb2.ImportModelRequest(chunk=bytes((2 << 20) + 1))
    async with serving(tmp_path) as served:
        for _ in range(12):
            error = await refusal(served.models.ImportModel(iter([start, *[large] * 20])))
            assert error.code() is INVALID
            assert "at most 2097152 are accepted" in (error.details() or "")


async def test_slow_client_of_a_refused_upload_gets_the_reason(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()

    async def messages() -> AsyncIterator[model_pb2.ImportModelRequest]:
        yield model_pb2.ImportModelRequest(start=model_pb2.ImportModelRequest.Start(name="new"))
        for _ in range(3):
            yield model_pb2.ImportModelRequest(chunk=bytes((2 << 20) + 1))
            await asyncio.sleep(0.4)

    async with serving(tmp_path) as served:
        error = await refusal(served.models.ImportModel(messages()))
        assert error.code() is INVALID
        assert "at most 2097152 are accepted" in (error.details() or "")


INVALID_UTF8 = b"\x0a\x02\xff\xfe"  # EmbedRequest.model


async def embed(channel: grpc.aio.Channel, data: bytes) -> None:
    await channel.unary_unary("/multigrain.v1.EmbeddingService/Embed")(data, timeout=60)


async def embed_stream(channel: grpc.aio.Channel, data: bytes) -> None:
    call = channel.stream_stream("/multigrain.v1.EmbeddingService/EmbedStream")
    async for _ in call(iter([data]), timeout=60):
        pass


@pytest.mark.parametrize("data", [b"\xff\xff\xff", INVALID_UTF8, b"\x0a\x7f"])
@pytest.mark.parametrize("call", [embed, embed_stream])
async def test_malformed_messages_are_invalid_arguments(
    app: App,
    channel: grpc.aio.Channel,
    data: bytes,
    call: Callable[[grpc.aio.Channel, bytes], Awaitable[None]],
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot parse the request" in (caught.value.details() or "")


def test_encoded_messages_pass_the_serializer_unchanged() -> None:
    encode = passthrough_bytes(JobEvent.SerializeToString)
    assert encode is not None
    event = JobEvent(seq=7)
    assert passthrough_bytes(None) is None
    assert encode(event) == encode(event.SerializeToString()) == event.SerializeToString()
