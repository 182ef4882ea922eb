"""Speeds measured with a clock that the runtime moves, and the choice by them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from multigrain.engine.runtimes.base import FloatArray, Outputs, Pixels, Runtime
from multigrain.engine.runtimes.speed import fastest, measure_speed
from multigrain.images.parameters import Preprocessing

NAMES = ("openvino-f32", "openvino-bf16", "openvino-int8")


class Timed(Runtime):
    """Takes given seconds for each batch; the last for all others."""

    def __init__(self, *seconds: float) -> None:
        self.name, self.best_batch, self.warm_sizes = "timed", 8, (1,)
        self.preprocessing = Preprocessing.standard(16)
        self.seconds = seconds
        self.now = 100.0
        self.batches = 0

    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        raise NotImplementedError

    def run_pixels(self, images: Sequence[Pixels], *, scores: bool = True) -> Outputs:
        assert [image.shape for image in images] == [(16, 16, 3)] * 8
        self.now += self.seconds[min(self.batches, len(self.seconds) - 1)]
        self.batches += 1
        return Outputs.__new__(Outputs)

    def speed(self, to_beat: float = 0.0) -> float:
        return measure_speed(self, 16, to_beat, lambda: self.now)


def test_the_first_batch_and_slow_batches_do_not_count() -> None:
    runtime = Timed(9.0, 0.1, 0.02, 0.5)
    assert runtime.speed() == pytest.approx(8 / 0.02)


@pytest.mark.parametrize(("seconds", "batches"), [(0.001, 6), (0.1, 4), (0.6, 2), (20.0, 2)])
def test_measuring_ends_soon(seconds: float, batches: int) -> None:
    """After a quarter of a second and a batch, beside the first batch."""
    runtime = Timed(seconds)
    assert runtime.speed() == pytest.approx(8 / seconds)
    assert runtime.batches == batches
    assert runtime.now - 100 - 2 * seconds <= 0.25 + 1e-9


def test_a_runtime_that_cannot_win_computes_one_batch() -> None:
    slow = Timed(0.64)
    assert slow.speed(to_beat=26.0) == pytest.approx(12.5)
    assert slow.batches == 1
    # A short first batch may be mostly compilation of kernels.
    short = Timed(0.3, 0.01)
    assert short.speed(to_beat=500.0) == pytest.approx(800)
    near = Timed(0.64, 0.4)
    assert near.speed(to_beat=15.0) == pytest.approx(20)


@pytest.mark.parametrize(
    ("processor", "speeds", "chosen"),
    [
        ("AVX2", (12.5, None, 26.6), "openvino-int8"),
        ("AVX-512 VNNI", (20, None, 65), "openvino-int8"),
        ("AMX", (48, 246, 436), "openvino-int8"),
        ("AMX, a network that 8 bits do not help", (48, 246, 250), "openvino-bf16"),
        ("bfloat16 is slow", (48, 40, 41), "openvino-f32"),
        ("a gain that may be noise", (100, 105, 109), "openvino-f32"),
        ("small gains add up", (100, 109, 111), "openvino-int8"),
    ],
)
def test_the_fastest_is_chosen_and_the_more_exact_of_equals(
    processor: str, speeds: tuple[float | None, ...], chosen: str
) -> None:
    known = {name: speed for name, speed in zip(NAMES, speeds, strict=True) if speed is not None}
    assert fastest(list(known), known) == chosen, processor
