"""Isolation of the images of a batch, with a runtime that fails on purpose."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest

from multigrain.engine import worker
from multigrain.engine.decoders import Budget, ImageDecoder, Wanted
from multigrain.engine.lanes import Lane
from multigrain.engine.protocol import EmbeddingOptions, Frame, InFlightSlots, Result, Submit
from multigrain.engine.runtimes.base import FloatArray, Outputs, Pixels, Runtime
from multigrain.errors import ErrorKind
from tests.engine.held import HeldBatcher, HeldSchedule

NAN, POISON, CRASH_DECODER = b"nan", b"poison", b"crash"
NAN_PIXEL, POISON_PIXEL = 255, 254


class FailingRuntime(Runtime):
    """Returns the mean of an image as its embedding; raises for a batch with a poisoned image."""

    name = "failing"
    warm_sizes = (1,)
    best_batch = 8

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.scored: list[bool] = []
        self.watch: Callable[[], object] = lambda: None

    def normalized(self, pixels: Pixels) -> FloatArray:
        return pixels.transpose(2, 0, 1).astype(np.float32)

    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        self.watch()
        self.batches.append(len(images))
        self.scored.append(scores)
        values = images.mean(axis=(1, 2, 3))
        values[values == NAN_PIXEL] = np.nan
        if (values == POISON_PIXEL).any():
            raise RuntimeError("no")
        return Outputs(np.stack([values, values], 1), np.zeros((len(images), 2), np.float32))


def decode(data: bytes, resolution: int) -> Pixels:
    if data == CRASH_DECODER:
        raise ZeroDivisionError
    value = {NAN: NAN_PIXEL, POISON: POISON_PIXEL}.get(data) or int(data)
    return np.full((resolution, resolution, 3), value, np.uint8)


class FunctionDecoder(ImageDecoder):
    """Decodes with a function of the test, in the thread that would wait for a process."""

    def __init__(self, function: Callable[[bytes, int], Pixels]) -> None:
        self._function = function

    def decode(self, data: bytes, resolution: int, budget: Budget, wanted: Wanted) -> Pixels:
        return self._function(data, resolution)


class Bench:
    def __init__(self) -> None:
        self.runtime = FailingRuntime()
        self.results: dict[int, Frame] = {}
        self.arrived = threading.Condition()
        self.seen_by_decoder: list[set[int]] = []
        self.decoded: Callable[[bytes], object] = lambda data: None
        self.inflight = InFlightSlots(InFlightSlots.allocate(8), 8)
        with mock.patch.multiple(worker, Batcher=HeldBatcher, Schedule=HeldSchedule):
            self.worker = worker.Worker(
                {4: self.runtime, 8: FailingRuntime()},
                4,
                {lane: [FunctionDecoder(self.decode) for _ in range(2)] for lane in Lane},
                self.take,
                max_batch=8,
                inflight=self.inflight,
            )
        self.worker.start()
        self.thread = threading.Thread(target=self.worker.compute_loop)
        self.thread.start()

    def hold(self, items: int) -> None:
        batcher = self.worker._batcher
        assert isinstance(batcher, HeldBatcher)
        batcher.hold(items)

    def decode(self, data: bytes, resolution: int) -> Pixels:
        self.seen_by_decoder.append({image.item_id for image in self.inflight.images()})
        self.decoded(data)
        return decode(data, resolution)

    def take(self, frames: list[Frame]) -> None:
        with self.arrived:
            for frame in frames:
                assert isinstance(frame.message, Result)
                assert frame.message.id not in self.results
                self.results[frame.message.id] = frame
            self.arrived.notify_all()

    def submit(self, number: int, data: bytes, resolution: int = 0) -> None:
        wants = EmbeddingOptions(normalize=False)
        self.worker.submit(Submit(id=number, vector=wants, resolution=resolution), data)

    def result(self, number: int) -> Result:
        with self.arrived:
            assert self.arrived.wait_for(lambda: number in self.results, 60)
        message = self.results[number].message
        assert isinstance(message, Result)
        return message

    def value(self, number: int) -> float:
        assert self.result(number).error is None
        return float(np.frombuffer(self.results[number].payload, "<f4")[0])


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.worker.close()
    made.thread.join(60)
    assert not made.thread.is_alive()


def test_a_non_finite_output_does_not_affect_other_images(bench: Bench) -> None:
    bench.hold(3)
    for number, data in enumerate([b"1", NAN, b"3"]):
        bench.submit(number, data)
    assert bench.result(1).error is ErrorKind.NOT_FINITE
    assert (bench.value(0), bench.value(2)) == (1, 3)
    assert bench.runtime.batches == [3]


def test_a_failed_batch_is_retried_image_by_image(bench: Bench) -> None:
    bench.hold(3)
    for number, data in enumerate([b"1", POISON, b"3"]):
        bench.submit(number, data)
    assert bench.result(1).error is ErrorKind.INTERNAL
    assert "RuntimeError" not in bench.result(1).message
    assert (bench.value(0), bench.value(2)) == (1, 3)
    bench.submit(10, b"7")
    assert bench.value(10) == 7


def test_an_exception_in_a_decoder_does_not_end_its_thread(bench: Bench) -> None:
    for number in range(8):
        bench.submit(number, CRASH_DECODER)
        assert bench.result(number).error is ErrorKind.IMAGE_UNREADABLE
    bench.submit(10, b"2")
    assert bench.value(10) == 2


def test_images_of_different_resolutions_are_computed_separately(bench: Bench) -> None:
    bench.hold(4)
    for number, resolution in enumerate([4, 8, 4, 8]):
        bench.submit(number, b"1", resolution)
    assert [bench.result(number).batch_items for number in range(4)] == [2, 2, 2, 2]


def test_canceling_an_unknown_image_does_nothing(bench: Bench) -> None:
    bench.worker.cancel(12345)
    bench.submit(1, b"5")
    assert bench.value(1) == 5


def test_the_next_image_is_decoded_while_the_network_computes(bench: Bench) -> None:
    computing, decoded = threading.Event(), threading.Event()

    def watch() -> None:
        computing.set()
        assert decoded.wait(60)

    bench.runtime.watch = watch
    bench.submit(1, b"1")
    assert computing.wait(60)
    bench.decoded = lambda data: decoded.set()
    bench.submit(2, b"2")
    assert (bench.value(1), bench.value(2)) == (1, 2)


def test_images_in_flight_are_recorded_in_shared_memory(bench: Bench) -> None:
    seen: list[set[int]] = []
    bench.runtime.watch = lambda: seen.append({image.item_id for image in bench.inflight.images()})
    bench.hold(3)
    for number in (1, 2, 3):
        bench.submit(number, b"5")
    assert bench.value(3) == 5
    bench.worker.close()
    bench.thread.join(60)
    assert {1, 2, 3} <= seen[0]
    # Only what computes: a decoder process cannot end the engine.
    assert bench.seen_by_decoder == [set(), set(), set()]
    assert bench.inflight.images() == []


def test_preprocessed_images_share_batches_with_others(bench: Bench) -> None:
    bench.hold(3)
    bench.submit(0, b"1")
    prepared = np.full((3, 4, 4), 2.5, "<f4").tobytes()
    bench.worker.submit(
        Submit(id=1, vector=EmbeddingOptions(normalize=False), tensor=True), prepared
    )
    bench.submit(2, b"3")
    assert [bench.value(number) for number in range(3)] == [1, 2.5, 3]
    assert bench.runtime.batches == [3]


def test_classes_are_scored_only_for_batches_that_need_scores(bench: Bench) -> None:
    bench.submit(1, b"1")
    bench.value(1)
    bench.hold(2)
    bench.submit(2, b"2")
    bench.worker.submit(Submit(id=3, top_k=1), b"3")
    assert bench.value(2) == 2
    assert bench.result(3).classes == 1
    bench.worker.submit(Submit(id=4, scores=True), b"4")
    assert bench.result(4).scores == 2
    assert bench.runtime.scored == [False, True, True]
