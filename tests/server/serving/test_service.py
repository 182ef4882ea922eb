"""The image service with real engines."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from multigrain.engine.protocol import EmbeddingOptions
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain_server import service_names
from tests.engine.bundles import CLASSES, EMBEDDING, SIZE, TinyNetwork, whitening_of, write_bundle
from tests.engine.held import hold
from tests.engine.pictures import invalid_images, picture, unusual_images
from tests.server.serving.harness import Harness, embed, harness, small_config, until, vectors

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harness]:
    """A loaded model, for tests that leave it as it is."""
    root = tmp_path_factory.mktemp("served")
    write_bundle(root / "models")
    async with harness(root) as h:
        await h.manager.load("tiny")
        yield h


async def test_answers_come_in_the_order_of_the_images(served: Harness) -> None:
    network = TinyNetwork(seed=1)
    pictures = [picture(seed) for seed in range(12)]
    parameters = Preprocessing(size=SIZE, resize_short=SIZE)
    expected = np.stack([network.embed(preprocess(data, parameters)) for data in pictures])
    answer = await served.embed(*pictures)
    assert answer.model == "tiny@1"
    np.testing.assert_allclose(vectors(answer), expected, rtol=1e-4)
    assert answer.times.total >= answer.times.compute > 0


async def test_whitened_vectors_follow_the_formula_also_in_a_mixed_batch(
    tmp_path: Path,
) -> None:
    network = TinyNetwork(seed=3)
    write_bundle(tmp_path / "models", network=network, also=16, whitened=True)
    pictures = [picture(seed) for seed in range(3)]
    parameters = Preprocessing(size=SIZE, resize_short=SIZE)
    plain = np.stack([network.embed(preprocess(data, parameters)) for data in pictures])
    phi = whitening_of(network).apply(plain)
    async with harness(tmp_path) as h:
        await h.manager.load("tiny")
        hold(h.manager.catalog.route("").engine, 9)
        raw, both, unit = await asyncio.gather(
            h.embed(*pictures, vector=EmbeddingOptions(normalize=False)),
            h.embed(*pictures, vector=EmbeddingOptions(normalize=False, whiten=True)),
            h.embed(*pictures, vector=EmbeddingOptions(whiten=True), top_k=1),
        )
        assert h.metric("multigrain_batch_items_count", model="tiny") == 2  # at most 8 in one
        with pytest.raises(MultigrainError, match="at 16 px: use resolution 32") as caught:
            await h.embed(pictures[0], resolution=16, vector=EmbeddingOptions(whiten=True))
    assert (raw.embedding_size, both.embedding_size) == (EMBEDDING, EMBEDDING + 1)
    np.testing.assert_allclose(vectors(raw), plain, rtol=1e-4)
    np.testing.assert_allclose(vectors(both), phi, atol=1e-4 * abs(phi).max())
    expected = phi / np.linalg.norm(phi, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(unit), expected, atol=1e-4)
    # Classes come from the network's own scores.
    classes = [item.classes(())[0].class_id for item in unit.results]
    assert classes == [int(np.argmax(network.logits(row))) for row in plain]
    assert caught.value.violations[0].field == "whiten"


async def test_each_resolution_of_a_bundle_has_its_own_preprocessing(tmp_path: Path) -> None:
    network = TinyNetwork(seed=3)
    write_bundle(tmp_path / "models", network=network, also=16)
    data = picture(1)
    async with harness(tmp_path) as h:
        await h.manager.load("tiny")
        hold(h.manager.catalog.route("").engine, 3)
        default, small, same = await asyncio.gather(
            h.embed(data), h.embed(data, resolution=16), h.embed(data, resolution=SIZE)
        )
        with pytest.raises(MultigrainError, match="use 32, 16, or 0 for 32"):
            await h.embed(data, resolution=24)
    for answer, size in ((default, SIZE), (small, 16), (same, SIZE)):
        image = preprocess(data, Preprocessing(size=size, resize_short=size))
        np.testing.assert_allclose(vectors(answer)[0], network.embed(image), rtol=1e-4)


async def test_requests_that_arrive_together_share_a_batch(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        hold(h.manager.catalog.route("").engine, 6)
        await asyncio.gather(*(h.embed(picture(seed)) for seed in range(6)))
        assert h.metric("multigrain_batch_items_count", model="tiny") == 1
        assert h.metric("multigrain_batch_items_sum", model="tiny") == 6


async def test_every_unusual_image_gets_its_own_status(root: Path) -> None:
    good, bad = unusual_images(), invalid_images()
    async with harness(root) as h:
        await h.manager.load("tiny")
        answer = await h.embed(*good.values(), *bad.values(), picture(1))
        after = await h.embed(picture(1))
    got = dict(zip([*good, *bad], answer.results, strict=False))
    for name in good:
        assert got[name].error is None, name
    kinds = {name: got[name].error.kind.name for name in bad if got[name].error is not None}
    assert kinds == {
        "0 bytes": "IMAGE_UNREADABLE",
        "text": "IMAGE_FORMAT",
        "truncated JPEG": "IMAGE_UNREADABLE",
        "truncated PNG": "IMAGE_UNREADABLE",
        "bomb": "IMAGE_TOO_LARGE",
        "12-bit JPEG": "IMAGE_FORMAT",
    }
    assert answer.results[-1].vector == after.results[0].vector
    assert h.metric("multigrain_items_failed_total", reason="too_large") == 1


async def test_a_file_above_the_byte_limit_fails_alone(root: Path) -> None:
    async with harness(root, small_config(max_image_bytes=20_000)) as h:
        await h.manager.load("tiny")
        answer = await h.embed(picture(1), b"\xff\xd8\xff" + b"x" * 30_000)
    assert answer.results[0].error is None
    assert answer.results[1].error is not None
    assert answer.results[1].error.kind is ErrorKind.IMAGE_TOO_LARGE
    assert "20000" in answer.results[1].error.message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"images": ()}, "images"),
        ({"images": (b"x",) * 65}, "images"),
        ({"resolution": 7}, "resolution"),
        ({"vector": EmbeddingOptions(whiten=True)}, "whiten"),
        ({"model": "no spaces allowed"}, "model"),
        ({"model": "tiny@zero"}, "model"),
    ],
)
async def test_an_invalid_field_is_refused_by_name(
    served: Harness, fields: dict[str, object], named: str
) -> None:
    with pytest.raises(MultigrainError) as caught:
        await served.service.infer(embed(picture(1), **fields))
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert caught.value.violations[0].field == named


async def test_a_top_k_above_the_number_of_classes_returns_all(served: Harness) -> None:
    answer = await served.service.infer(embed(picture(1), vector=None, top_k=1000))
    scores = answer.results[0].classes(answer.labels)
    assert len(scores) == CLASSES
    assert sum(score.probability for score in scores) == pytest.approx(1)
    assert [s.probability for s in scores] == sorted((s.probability for s in scores), reverse=True)
    assert all(score.label == f"label {score.class_id}" for score in scores)


@pytest.mark.parametrize(("dtype", "size"), [("fp16", 2), ("int8", 1)])
async def test_smaller_dtypes_keep_the_vector(served: Harness, dtype: str, size: int) -> None:
    whole = vectors(await served.embed(picture(1), vector=EmbeddingOptions()))[0]
    item = (await served.embed(picture(1), vector=EmbeddingOptions(dtype=dtype))).results[0]
    assert len(item.vector) * 4 == whole.nbytes * size
    got = np.frombuffer(item.vector, "<f2" if dtype == "fp16" else "i1").astype(np.float32)
    if dtype == "int8":
        got *= item.reply.scale
    assert np.linalg.norm(whole) == pytest.approx(1, abs=1e-6)
    assert float(got @ whole) / float(np.linalg.norm(got)) > 0.9995
    np.testing.assert_allclose(
        got, whole, atol=1e-3 if dtype == "fp16" else item.reply.scale * 0.51
    )


async def test_the_error_without_a_loaded_model_says_what_to_do(root: Path) -> None:
    async with harness(root) as h:
        with pytest.raises(MultigrainError, match="no model is loaded: LoadModel first") as caught:
            await h.embed(picture(1))
        assert caught.value.kind is ErrorKind.NOT_FOUND
        with pytest.raises(MultigrainError, match="tiny@1 is not loaded") as caught:
            await h.embed(picture(1), model="tiny")
        assert caught.value.kind is ErrorKind.WRONG_STATE
        with pytest.raises(MultigrainError, match="no model other; there is tiny") as caught:
            await h.embed(picture(1), model="other")
        assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_a_passed_deadline_is_an_error_and_the_image_is_dropped(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 2)
        start = time.monotonic()
        with pytest.raises(MultigrainError) as caught:
            await h.embed(picture(1), deadline_ns=time.monotonic_ns() + 100_000_000)
        assert caught.value.kind is ErrorKind.DEADLINE
        assert time.monotonic() - start > 0.09
        await asyncio.gather(h.embed(picture(2)), h.embed(picture(3)))
        # The dropped one was in no batch.
        assert h.metric("multigrain_batch_items_sum", model="tiny") == 2
        await until(lambda: h.metric("multigrain_cancelled_items_total", where="queue") == 1)


async def test_the_images_of_a_canceled_caller_are_dropped(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 2)
        gone = asyncio.create_task(h.embed(picture(1)))
        await until(lambda: engine.in_flight == 1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await until(lambda: engine.in_flight == 0)
        assert h.service.admission.items == 0
        await asyncio.gather(h.embed(picture(2)), h.embed(picture(3)))
        assert h.metric("multigrain_batch_items_sum", model="tiny") == 2
        assert h.metric("multigrain_cancelled_items_total", where="queue") == 1


async def test_a_killed_engine_is_replaced_and_the_requests_in_flight_are_answered(
    root: Path,
) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        before = await h.embed(picture(1))
        engine = h.manager.catalog.route("").engine
        hold(engine, 100)
        inside = [asyncio.create_task(h.embed(picture(1))) for _ in range(3)]
        await until(lambda: engine.in_flight == 3)
        assert h.health[service_names.EMBEDDING]

        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: not h.health[service_names.EMBEDDING])
        with pytest.raises(MultigrainError) as caught:
            await h.embed(picture(1))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert "SIGKILL" in caught.value.message
        assert h.manager.catalog.view("tiny").state.value == "failed"

        for answer in (*await asyncio.gather(*inside), await h.embed(picture(1))):
            np.testing.assert_allclose(vectors(answer), vectors(before), rtol=1e-4, atol=1e-6)
        assert h.health[service_names.EMBEDDING]
        assert h.manager.catalog.view("tiny").restarts == 1
        assert h.metric("multigrain_engine_restarts_total") == 1
        assert [up for name, up in h.health_log if name == service_names.EMBEDDING] == [
            False,
            True,
            False,
            True,
        ]
        assert h.service.admission.items == 0


async def test_an_engine_that_hangs_is_killed_and_replaced(root: Path) -> None:
    async with harness(root, small_config(engine_stall_seconds=2.0)) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        before = len(h.health_log)
        os.kill(engine.pid, signal.SIGSTOP)
        # The next engine answers what was in flight.
        assert (await h.embed(picture(1))).results[0].error is None
        assert engine.end_reason.startswith("killed: an image was in flight for more than")
        assert (service_names.EMBEDDING, False) in h.health_log[before:]
        await until(lambda: h.health[service_names.EMBEDDING])
        assert h.manager.catalog.view("tiny").restarts == 1
        assert (await h.embed(picture(1))).results[0].error is None


async def test_every_stage_is_measured(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        await h.embed(picture(1), picture(2))
        for stage, count in {"admit": 1, "decode": 2, "queue": 2, "infer": 2}.items():
            name = "multigrain_stage_seconds_count"
            assert h.metric(name, model="tiny", stage=stage) == count, stage
        assert h.metric("multigrain_queue_items", model="tiny") == 0
        assert h.metric("multigrain_inflight_items") == 0


async def test_closing_finishes_requests_in_flight_and_refuses_new_ones(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        engine = h.manager.catalog.route("").engine
        hold(engine, 3)
        inside = [asyncio.create_task(h.embed(picture(seed))) for seed in range(2)]
        await until(lambda: engine.in_flight == 2)
        closing = asyncio.create_task(h.close(10))
        await asyncio.sleep(0.05)
        with pytest.raises(MultigrainError) as caught:
            await h.embed(picture(5))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert not closing.done()
        hold(engine, 0)
        await asyncio.gather(*inside)
        await closing
        assert engine.ended.is_set()
