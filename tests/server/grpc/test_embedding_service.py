"""Embed, Classify and EmbedStream over a real connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import structlog
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from multigrain.v1 import common_pb2
from multigrain.v1.embedding_pb2 import (
    DTYPE_FP16,
    DTYPE_FP32,
    DTYPE_INT8,
    VECTOR_ENCODING_BYTES,
    VECTOR_ENCODING_FLOATS,
    ClassifyRequest,
    EmbedRequest,
    EmbedResponse,
)
from tests.engine.bundles import CLASSES, EMBEDDING, write_bundle
from tests.engine.held import hold
from tests.engine.pictures import invalid_images, picture, unusual_images
from tests.server.grpc.refusal import detail, status_of
from tests.server.grpc.serving import Serving, serving
from tests.server.serving.harness import small_config, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    """A server with a loaded model, for tests that leave it as it is."""
    root = tmp_path_factory.mktemp("served")
    write_bundle(root / "models")
    async with serving(root) as s:
        await s.manager.load("tiny")
        yield s


async def test_a_vector_is_normalized_and_has_timings(served: Serving) -> None:
    response = await served.embedding.Embed(
        EmbedRequest(images=[picture(1), picture(2)], request_id="mine")
    )
    assert response.model == "tiny@1"
    assert response.request_id == "mine"
    for result in response.results:
        assert result.status.code == 0
        assert result.embedding.size == EMBEDDING
        assert result.embedding.dtype == DTYPE_FP32
        vector = np.frombuffer(result.embedding.data, "<f4")
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    timings = response.timings
    assert timings.total_ns > timings.compute_ns > 0
    assert timings.decode_ns > 0


async def test_normalization_can_be_turned_off(served: Serving) -> None:
    request = EmbedRequest(images=[picture(1)], normalize=False)
    raw = np.frombuffer((await served.embedding.Embed(request)).results[0].embedding.data, "<f4")
    request.normalize = True
    unit = np.frombuffer((await served.embedding.Embed(request)).results[0].embedding.data, "<f4")
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "letter"), [(DTYPE_FP16, "<f2"), (DTYPE_INT8, "i1")])
async def test_a_vector_states_its_dtype(served: Serving, dtype: int, letter: str) -> None:
    request = EmbedRequest(images=[picture(1)])
    whole = (await served.embedding.Embed(request)).results[0].embedding
    request.dtype = dtype  # type: ignore[assignment]
    small = (await served.embedding.Embed(request)).results[0].embedding
    assert small.dtype == dtype
    vector = np.frombuffer(small.data, letter).astype(np.float32) * (small.scale or 1)
    np.testing.assert_allclose(vector, np.frombuffer(whole.data, "<f4"), atol=5e-3)
    assert (small.scale > 0) == (dtype == DTYPE_INT8)


async def test_a_vector_can_be_sent_as_numbers(served: Serving) -> None:
    images = [picture(1), b"x", picture(2)]
    in_bytes = EmbedRequest(images=images, vector_encoding=VECTOR_ENCODING_BYTES)
    in_floats = EmbedRequest(images=images, vector_encoding=VECTOR_ENCODING_FLOATS)
    plain = await served.embedding.Embed(in_bytes)
    numbers = await served.embedding.Embed(in_floats)
    for packed, listed in zip(plain.results, numbers.results, strict=True):
        assert listed.HasField("embedding") == packed.HasField("embedding")
        assert listed.embedding.size == len(listed.embedding.values)
        assert not listed.embedding.data
        np.testing.assert_array_equal(
            np.array(listed.embedding.values, np.float32),
            np.frombuffer(packed.embedding.data, "<f4"),
        )

    async def alternating() -> AsyncIterator[EmbedRequest]:
        for request in (in_floats, in_bytes, in_floats):
            yield request

    streamed = [reply async for reply in served.embedding.EmbedStream(alternating())]
    assert [bool(reply.results[0].embedding.values) for reply in streamed] == [True, False, True]
    assert streamed[0].results[2].embedding == numbers.results[2].embedding


async def test_classes_are_in_order_of_probability(served: Serving) -> None:
    default = await served.embedding.Classify(ClassifyRequest(images=[picture(1)]))
    two = await served.embedding.Classify(
        ClassifyRequest(images=[picture(1), b"x"], top_k=2, request_id="r")
    )
    assert len(default.results[0].classes) == CLASSES
    first, second = two.results[0].classes
    assert first.probability >= second.probability
    assert first.label == f"label {first.class_id}"
    assert two.request_id == "r"
    assert two.results[1].status.kind == common_pb2.ERROR_KIND_IMAGE_FORMAT
    assert not two.results[1].classes


async def test_every_unusual_image_gets_its_own_status_and_the_call_is_ok(served: Serving) -> None:
    good, bad = unusual_images(), invalid_images()
    response = await served.embedding.Embed(EmbedRequest(images=[*good.values(), *bad.values()]))
    results = dict(zip([*good, *bad], response.results, strict=True))
    for name in good:
        assert results[name].status.code == 0, name
        assert results[name].HasField("embedding")
    for name in bad:
        status = results[name].status
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], name
        assert common_pb2.ErrorKind.Name(status.kind).startswith("ERROR_KIND_IMAGE_")
        assert status.message
        assert "Traceback" not in status.message
        assert not results[name].HasField("embedding")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (EmbedRequest(), "images"),
        (EmbedRequest(images=[b"x"] * 65), "images"),
        (EmbedRequest(images=[b"x"], resolution=5), "resolution"),
        (EmbedRequest(images=[b"x"], whiten=True), "whiten"),
        (EmbedRequest(images=[b"x"], dtype=9), "dtype"),  # type: ignore[arg-type]
        (EmbedRequest(images=[b"x"], vector_encoding=9), "vector_encoding"),  # type: ignore[arg-type]
        (
            EmbedRequest(images=[b"x"], dtype=DTYPE_FP16, vector_encoding=VECTOR_ENCODING_FLOATS),
            "vector_encoding",
        ),
        (EmbedRequest(images=[b"x"], model="ti ny"), "model"),
    ],
)
async def test_an_invalid_field_is_an_invalid_argument_that_names_it(
    served: Serving, request_: EmbedRequest, field: str
) -> None:
    error = await status_of(served.embedding.Embed(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = detail(error, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == field
    assert (await served.embedding.Embed(EmbedRequest(images=[picture(1)]))).results


async def test_the_error_without_a_model_says_what_to_do(root: Path) -> None:
    async with serving(root) as s:
        error = await status_of(s.embedding.Embed(EmbedRequest(images=[b"x"])))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "LoadModel first" in (error.details() or "")
        error = await status_of(s.embedding.Embed(EmbedRequest(images=[b"x"], model="tiny")))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        error = await status_of(s.embedding.Embed(EmbedRequest(images=[b"x"], model="none")))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_an_overload_error_has_a_retry_delay(root: Path) -> None:
    async with serving(root, small_config(queue_items=2, max_images_per_request=2)) as s:
        await s.manager.load("tiny")
        engine = s.manager.catalog.route("").engine
        hold(engine, 100)
        inside = s.embedding.Embed(EmbedRequest(images=[picture(1), picture(2)]))
        await until(lambda: engine.in_flight == 2)
        error = await status_of(s.embedding.Embed(EmbedRequest(images=[picture(3)])))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = detail(error, error_details_pb2.RetryInfo)
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToMilliseconds() > 0
        hold(engine, 0)
        await inside


async def test_images_are_dropped_at_the_deadline_of_the_call(root: Path) -> None:
    async with serving(root) as s:
        await s.manager.load("tiny")
        engine = s.manager.catalog.route("").engine
        hold(engine, 2)
        error = await status_of(s.embedding.Embed(EmbedRequest(images=[picture(1)]), timeout=0.15))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: s.service.admission.items == 0)
        await s.embedding.Embed(EmbedRequest(images=[picture(1), picture(2)]))
        assert s.harness.metric("multigrain_batch_items_sum", model="tiny") == 2


async def test_images_of_a_canceled_call_are_dropped(root: Path) -> None:
    async with serving(root) as s:
        await s.manager.load("tiny")
        engine = s.manager.catalog.route("").engine
        hold(engine, 100)
        call = s.embedding.Embed(EmbedRequest(images=[picture(1)]))
        waiting = asyncio.ensure_future(call)
        await until(lambda: engine.in_flight == 1)
        call.cancel()
        await until(lambda: engine.in_flight == 0)
        assert s.service.admission.items == 0
        assert s.harness.metric("multigrain_cancelled_items_total", where="queue") == 1
        await asyncio.gather(waiting, return_exceptions=True)


def memory_shared_with_engines() -> set[int]:
    """Inodes of what this process has open of it."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd).startswith("/memfd:multigrain-inflight"):
                found.add(fd.stat().st_ino)
    return found


async def test_the_images_of_a_killed_engine_are_answered_by_the_next_one(
    root: Path,
) -> None:
    before = memory_shared_with_engines()
    async with serving(root) as s:
        await s.manager.load("tiny")
        engine = s.manager.catalog.route("").engine
        hold(engine, 100)
        call = asyncio.ensure_future(s.embedding.Embed(EmbedRequest(images=[picture(1)])))
        await until(lambda: engine.in_flight == 1)
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: s.manager.catalog.view("tiny").state.value == "failed")
        error = await status_of(s.embedding.Embed(EmbedRequest(images=[picture(1)])))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert (await call).results
        assert (await s.embedding.Embed(EmbedRequest(images=[picture(1)]))).results
        # Without waiting for the garbage collector.
        assert len(memory_shared_with_engines() - before) == 1
    assert not memory_shared_with_engines() - before


async def test_a_stream_keeps_order_and_ids(served: Serving) -> None:
    async def requests() -> AsyncIterator[EmbedRequest]:
        for number in range(40):
            images = [picture(number % 7), b"bad"][: 1 + number % 2]
            yield EmbedRequest(images=images, request_id=str(number))

    got = [response async for response in served.embedding.EmbedStream(requests())]
    alone = [
        (await served.embedding.Embed(EmbedRequest(images=[picture(seed)]))).results[0]
        for seed in range(7)
    ]
    assert [response.request_id for response in got] == [str(number) for number in range(40)]
    for number, response in enumerate(got):
        assert len(response.results) == 1 + number % 2
        np.testing.assert_allclose(
            np.frombuffer(response.results[0].embedding.data, "<f4"),
            np.frombuffer(alone[number % 7].embedding.data, "<f4"),
            atol=1e-5,
        )
        if number % 2:
            assert response.results[1].status.code != 0


async def test_an_invalid_request_ends_its_stream_after_the_replies_before_it(
    served: Serving,
) -> None:
    got: list[EmbedResponse] = []

    async def requests() -> AsyncIterator[EmbedRequest]:
        yield EmbedRequest(images=[picture(1)])
        yield EmbedRequest(images=[picture(2)])
        yield EmbedRequest(images=[picture(3)], dtype=9)  # type: ignore[arg-type]
        yield EmbedRequest(images=[picture(4)])

    async def read() -> None:
        call = served.embedding.EmbedStream(requests())
        while (response := await call.read()) is not grpc.aio.EOF:
            got.append(response)
        await call.code()

    error = await status_of(read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(got) == 2
    await until(lambda: served.service.admission.items == 0)


async def test_the_request_id_of_the_caller_is_logged(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(root) as s:
        await s.manager.load("tiny")
        with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
            await s.embedding.Embed(EmbedRequest(images=[picture(1)], request_id="first"))
            await s.embedding.Classify(ClassifyRequest(images=[b""], request_id="s" * 10_000))
            await status_of(s.embedding.Embed(EmbedRequest(request_id="third")))
            await s.embedding.Embed(EmbedRequest(images=[picture(1)]))
            calls = [line for line in lines if line["event"] == "call"]
    ids = [call.get("caller_request_id") for call in calls]
    assert ids == ["first", "s" * 128, "third", None]


@pytest.mark.parametrize("stream", [False, True], ids=["request", "stream"])
async def test_a_request_with_an_unknown_dtype_is_counted_as_wasted(
    root: Path, stream: bool
) -> None:
    async with serving(root) as served:
        request = EmbedRequest(images=[b"x"], dtype=9)  # type: ignore[arg-type]
        call = (
            anext(aiter(served.embedding.EmbedStream(iter([request]))))
            if stream
            else served.embedding.Embed(request)
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert served.service.pacing.counts("127.0.0.1")


@pytest.mark.parametrize("wrong", [{"dtype": 9, "images": [b"x"]}, {"images": []}])
async def test_the_log_names_the_request_that_ended_a_stream(
    root: Path, wrong: dict[str, object]
) -> None:
    async with serving(root) as s:
        await s.manager.load("tiny")

        async def requests() -> AsyncIterator[EmbedRequest]:
            yield EmbedRequest(images=[picture(1)], request_id="good")
            yield EmbedRequest(**wrong, request_id="wrong")  # type: ignore[arg-type]

        with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in s.embedding.EmbedStream(requests()):
                    pass
            await until(lambda: any(line["event"] == "call" for line in lines))
    assert [line["caller_request_id"] for line in lines if line["event"] == "call"] == ["wrong"]
