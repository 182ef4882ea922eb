"""Images and requests in flight when an engine dies or hangs."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.testing import capture_logs

from multigrain.engine.protocol import InFlightImage
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server import service_names
from multigrain_server.backoff import Backoff
from multigrain_server.engines.engine import InFlightTable
from multigrain_server.serving.service import ImageResponse
from tests.engine.bundles import write_bundle
from tests.server.engines.fake_engine import FakeEngines
from tests.server.serving.harness import Harness, harness, small_config, until, vectors

DEADLY = b"deadly"
LARGE = b"large"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


@pytest.fixture
def engines() -> FakeEngines:
    return FakeEngines(deadly={DEADLY})


async def held_back(
    h: Harness, engines: FakeEngines, *images: bytes
) -> asyncio.Task[ImageResponse]:
    """A request that is wholly in the engine before any of it is computed."""
    engines.may_compute.clear()
    engine = h.manager.catalog.route("tiny").engine
    request = asyncio.create_task(h.embed(*images))
    await until(lambda: engine.in_flight == len(images))
    return request


def first_bytes(answer: ImageResponse) -> list[bytes]:
    return [bytes(vector.astype(np.uint8)) for vector in vectors(answer)]


async def test_an_image_that_crashes_engines_is_quarantined_and_its_neighbors_are_answered(
    root: Path, engines: FakeEngines
) -> None:
    digest = hashlib.sha256(DEADLY).hexdigest()
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        request = await held_back(h, engines, b"one ", DEADLY, b"two ", b"last")
        with capture_logs() as lines:
            engines.may_compute.set()
            answer = await request
        errors = [item.error for item in answer.results]
        assert [error is None for error in errors] == [True, False, True, True]
        assert errors[1] is not None
        assert errors[1].kind is ErrorKind.IMAGE_HARMFUL
        assert digest in errors[1].message
        assert {line.get("sha256") for line in lines if line.get("model") == "tiny@1"} >= {digest}
        assert answer.results[0].vector == np.frombuffer(b"one ", np.uint8).astype("<f4").tobytes()
        # Once together, once alone until it is found, and the rest together again.
        assert engines.taken == {b"one ": 2, DEADLY: 2, b"two ": 2, b"last": 2}
        assert len(engines.children) == 3
        assert h.manager.catalog.view("tiny").restarts == 2
        assert h.metric("multigrain_engine_restarts_total") == 2
        assert h.metric("multigrain_items_failed_total", reason="harmful") == 1


async def test_no_later_line_of_an_engine_names_the_call_that_loaded_it(
    root: Path, engines: FakeEngines
) -> None:
    async def load() -> None:
        with bound_contextvars(request_id="abc", token="admin"):
            await h.manager.load("tiny")

    async with harness(root, launch=engines.launch) as h:
        with capture_logs(processors=[merge_contextvars]) as lines:
            await asyncio.create_task(load())
        assert [line for line in lines if line.get("request_id") == "abc"]
        with capture_logs(processors=[merge_contextvars]) as lines:
            request = await held_back(h, engines, DEADLY)
            engines.may_compute.set()
            await request
        assert len(lines) > 1
        assert [line for line in lines if line.keys() & {"request_id", "token"}] == []


async def test_a_quarantined_image_crashes_no_further_engine(
    root: Path, engines: FakeEngines
) -> None:
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        await h.embed(DEADLY)
        await until(lambda: h.health[service_names.EMBEDDING])
        count = len(engines.children)
        answer = await h.embed(b"good", DEADLY)
        assert answer.results[0].error is None
        assert answer.results[1].error is not None
        assert answer.results[1].error.kind is ErrorKind.IMAGE_HARMFUL
        assert len(engines.children) == count
        assert engines.taken[DEADLY] == 2


async def test_an_image_without_enough_memory_is_refused_and_its_neighbors_are_answered(
    root: Path, engines: FakeEngines
) -> None:
    engines.large = {LARGE}
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        # Twice in the request: its second copy ends no further engine.
        request = await held_back(h, engines, b"one ", LARGE, b"two ", LARGE)
        engines.may_compute.set()
        answer = await request
        errors = [item.error for item in answer.results]
        assert [error is None for error in errors] == [True, False, True, False]
        for error in (errors[1], errors[3]):
            assert error is not None
            assert error.kind is ErrorKind.OVERLOADED
            assert "the machine has 24 GiB" in error.message
        assert engines.taken == {b"one ": 2, LARGE: 3, b"two ": 2}
        assert len(engines.children) == 3
        assert h.metric("multigrain_items_failed_total", reason="memory") == 2
        await until(lambda: h.health[service_names.EMBEDDING])
        again = (await h.embed(LARGE)).results[0].error
        assert again is not None
        assert again.kind is ErrorKind.OVERLOADED
        assert len(engines.children) == 3


async def test_images_that_only_waited_go_to_the_next_engine(
    root: Path, engines: FakeEngines
) -> None:
    engines.batch = 2
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        waiting = [b"%03d " % number for number in range(20)]
        request = await held_back(h, engines, DEADLY, *waiting)
        engines.may_compute.set()
        answer = await request
        assert [item.error is None for item in answer.results] == [False] + [True] * 20
        assert [engines.taken[image] for image in waiting[1:]] == [1] * 19


async def test_two_images_that_crash_engines_are_both_quarantined(
    root: Path, engines: FakeEngines
) -> None:
    engines.deadly.add(b"also deadly")
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        request = await held_back(h, engines, b"also deadly", b"good", DEADLY, b"fine")
        engines.may_compute.set()
        answer = await request
        assert [item.error is None for item in answer.results] == [False, True, False, True]


async def test_no_image_is_blamed_for_a_signal_from_outside(
    root: Path, engines: FakeEngines
) -> None:
    engines.hanging = {b"slow"}
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        request = asyncio.create_task(h.embed(b"slow", b"good"))
        await until(lambda: len(engines.children[0].processing()) == 2)
        engines.hanging.clear()
        engines.children[0].die("signal SIGKILL")
        assert first_bytes(await request) == [b"slow", b"good"]
        assert len(engines.children) == 2
        assert engines.taken == {b"slow": 2, b"good": 2}


async def test_an_image_whose_caller_was_canceled_is_not_retried(
    root: Path, engines: FakeEngines
) -> None:
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        gone = await held_back(h, engines, DEADLY)
        stays = asyncio.create_task(h.embed(b"good"))
        engine = h.manager.catalog.route("tiny").engine
        await until(lambda: engine.in_flight == 2)
        gone.cancel()
        engines.may_compute.set()
        assert first_bytes(await stays) == [b"good"]
        assert engines.taken[DEADLY] == 1
        assert h.service.admission.items == 0


async def test_a_cancellation_reaches_the_engine_that_took_the_image_over(
    root: Path, engines: FakeEngines
) -> None:
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        request = await held_back(h, engines, b"good")
        engines.children[0].die("signal SIGKILL")
        await until(lambda: h.health_log.count((service_names.EMBEDDING, True)) == 2)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await until(lambda: engines.canceled == 1)
        engines.may_compute.set()


async def test_health_is_down_until_the_next_engine_answers(
    root: Path, engines: FakeEngines
) -> None:
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        engines.may_start.clear()
        engines.children[0].die("signal SIGSEGV")
        await until(lambda: not h.health[service_names.EMBEDDING])
        assert h.manager.catalog.view("tiny").state.value == "failed"
        assert "SIGSEGV" in h.manager.catalog.view("tiny").message
        with pytest.raises(MultigrainError) as caught:
            await h.embed(b"good")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert caught.value.retry_after
        engines.may_start.set()
        await until(lambda: h.health[service_names.EMBEDDING])
        assert first_bytes(await h.embed(b"good")) == [b"good"]


async def test_the_first_restart_has_no_delay(root: Path, engines: FakeEngines) -> None:
    config = small_config(restart_backoff_seconds=1000, restart_backoff_max_seconds=1000)
    async with harness(root, config, engines.launch) as h:
        await h.manager.load("tiny")
        engines.children[0].die("signal SIGSEGV")
        await until(lambda: len(engines.children) == 2)
        assert [spec.low_priority for spec in engines.specs] == [True, False]


async def test_no_delay_follows_a_crash_whose_image_was_quarantined(
    root: Path, engines: FakeEngines
) -> None:
    config = small_config(restart_backoff_seconds=1000, restart_backoff_max_seconds=1000)
    async with harness(root, config, engines.launch) as h:
        await h.manager.load("tiny")
        await h.embed(DEADLY)
        await until(lambda: h.health[service_names.EMBEDDING])
        assert len(engines.children) == 3


async def test_an_engine_that_lived_long_resets_the_delay(
    root: Path, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    following = Backoff.next

    def recorded(backoff: Backoff) -> float:
        delays.append(following(backoff))
        return delays[-1]

    monkeypatch.setattr(Backoff, "next", recorded)
    config = small_config(restart_backoff_seconds=0.01, restart_backoff_max_seconds=0.05)
    async with harness(root, config, engines.launch) as h:
        await h.manager.load("tiny")
        for number in range(2):
            await asyncio.sleep(0.1)
            engines.children[-1].die("signal SIGKILL")
            await until(lambda n=number: len(engines.children) == n + 2)
            await until(lambda: h.health[service_names.EMBEDDING])
    assert delays == [0.0, 0.0]


async def test_callers_get_an_error_when_no_engine_can_be_started(
    root: Path, engines: FakeEngines
) -> None:
    config = small_config(restart_backoff_seconds=1000, restart_backoff_max_seconds=1000)
    async with harness(root, config, engines.launch) as h:
        await h.manager.load("tiny")
        request = await held_back(h, engines, b"good")
        engines.failures = [OSError(errno.ENOMEM, "Cannot allocate memory")]
        engines.children[0].die("signal SIGKILL")
        with pytest.raises(MultigrainError, match="could not be replaced at once") as caught:
            await request
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert caught.value.retry_after
        assert "Cannot allocate memory" in h.manager.catalog.view("tiny").message


async def test_an_unload_during_a_restart_fails_the_images_that_wait(
    root: Path, engines: FakeEngines
) -> None:
    async with harness(root, launch=engines.launch) as h:
        await h.manager.load("tiny")
        request = await held_back(h, engines, b"good")
        engines.may_start.clear()
        engines.children[0].die("signal SIGKILL")
        await until(lambda: h.manager.catalog.view("tiny").state.value == "failed")
        await h.manager.unload("tiny")
        with pytest.raises(MultigrainError) as caught:
            await request
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert engines.running == []


async def test_an_image_that_hangs_engines_is_quarantined_and_its_neighbors_are_answered(
    root: Path, engines: FakeEngines
) -> None:
    engines.hanging, engines.batch = {b"slow"}, 2
    waiting = [b"%03d " % number for number in range(6)]
    async with harness(root, small_config(engine_stall_seconds=0.2), engines.launch) as h:
        await h.manager.load("tiny")
        request = await held_back(h, engines, b"slow", b"good", *waiting)
        with capture_logs() as lines:
            engines.may_compute.set()
            answer = await request
        errors = [item.error for item in answer.results]
        assert [error is None for error in errors] == [False, *[True] * 7]
        assert errors[0] is not None
        assert errors[0].kind is ErrorKind.IMAGE_HARMFUL
        assert "hung twice" in errors[0].message
        assert hashlib.sha256(b"slow").hexdigest() in errors[0].message
        ends = [line["reason"] for line in lines if line["event"] == "engine ended"]
        assert ["an image was in flight for more than" in end for end in ends] == [True, True]
        # Those that only waited go to the next engine, without a trial.
        assert engines.taken == {b"slow": 2, b"good": 2, **dict.fromkeys(waiting, 1)}
        await until(lambda: h.health[service_names.EMBEDDING])
        again = (await h.embed(b"slow", b"good")).results
        assert [item.error is None for item in again] == [False, True]
        assert len(engines.children) == 3


async def test_an_image_with_which_an_engine_hangs_once_is_answered_by_the_next(
    root: Path, engines: FakeEngines
) -> None:
    engines.hanging = {b"slow"}
    async with harness(root, small_config(engine_stall_seconds=0.2), engines.launch) as h:
        await h.manager.load("tiny")
        request = asyncio.create_task(h.embed(b"slow"))
        await until(lambda: len(engines.children[0].processing()) == 1)
        engines.hanging.clear()
        assert first_bytes(await request) == [b"slow"]
        assert len(engines.children) == 2


async def test_a_hanging_engine_without_a_successor_asks_for_a_retry(
    root: Path, engines: FakeEngines
) -> None:
    engines.hanging = {b"slow"}
    config = small_config(engine_stall_seconds=0.05, restart_backoff_seconds=1000)
    async with harness(root, config, engines.launch) as h:
        await h.manager.load("tiny")
        engines.failures = [OSError(errno.ENOMEM, "Cannot allocate memory")]
        with pytest.raises(MultigrainError, match="an image was in flight for more than") as caught:
            await h.embed(b"slow")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert caught.value.retry_after


def test_a_stuck_image_is_detected_although_others_are_answered() -> None:
    items = InFlightTable()
    assert items.seconds_stuck([]) == 0
    now = time.monotonic_ns()
    items.finish(1)  # an answer, a moment ago
    assert items.seconds_stuck([InFlightImage(2, now - 5_000_000_000), InFlightImage(3, now)]) >= 5
