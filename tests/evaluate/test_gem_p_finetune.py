"""Fine-tuning p, against NumPy with finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor
from numpy.typing import NDArray

from multigrain.evaluate.gem_p import ExponentTuner, learning_rate
from multigrain.model.layers import Dense

pytestmark = pytest.mark.mindspore

FloatArray = NDArray[np.float32]
C, K = 2, 2


def classifier(weight: FloatArray) -> Dense:
    cell = Dense(C, K)
    cell.weight.set_data(Tensor(weight.astype(np.float32)))
    return cell


def problem(peaks_tell: bool) -> tuple[FloatArray, NDArray[np.int32]]:
    """Feature maps of two channels: one has a single high peak, the other is constant.

    The constant channel has the larger mean, the other the larger maximum. ``peaks_tell``: the
    class is that of the peak, so a large p is right; otherwise that of the constant channel.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40).astype(np.int32)
    maps = np.full((40, C, 4, 4), 0.5, np.float32)
    for image, label in enumerate(labels):
        channel = label if peaks_tell else 1 - label
        maps[image, channel] = 0.05
        maps[image, channel, rng.integers(4), rng.integers(4)] = 2.0
    return maps + rng.uniform(0, 0.02, maps.shape).astype(np.float32), labels


def loss_by_hand(
    maps: FloatArray, labels: NDArray[np.int32], weight: FloatArray, p: float
) -> float:
    pooled = (maps.astype(np.float64) ** p).mean((2, 3)) ** (1 / p)
    logits = pooled @ weight.T
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]))


def test_the_rate_decays_by_the_published_polynomial() -> None:
    rates = [learning_rate(0.005, step, 4) for step in range(5)]
    expected = [0.005, 0.005 * 0.75**0.9, 0.005 * 0.5**0.9, 0.005 * 0.25**0.9, 0]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_steps_are_sgd_with_momentum_on_finite_differences() -> None:
    maps, labels = problem(peaks_tell=True)
    weight = np.array([[2.0, -1.0], [-1.5, 2.5]], np.float32)
    tuner = ExponentTuner(classifier(weight), 2.5, rate=0.3, steps=10)
    p, velocity = 2.5, 0.0
    for step in range(10):
        part = slice(4 * step, 4 * step + 4)
        loss = tuner.step(maps[part], labels[part])
        assert loss == pytest.approx(loss_by_hand(maps[part], labels[part], weight, p), rel=1e-4)
        up, down = (loss_by_hand(maps[part], labels[part], weight, p + d) for d in (1e-5, -1e-5))
        velocity = 0.9 * velocity + (up - down) / 2e-5
        p = max(1.0, p - learning_rate(0.3, step, 10) * velocity)
        assert tuner.p == pytest.approx(p, abs=2e-4)
    assert abs(tuner.p - 2.5) > 0.1


@pytest.mark.parametrize("peaks_tell", [True, False])
def test_p_moves_toward_separating_the_classes(peaks_tell: bool) -> None:
    maps, labels = problem(peaks_tell)
    weight = np.array([[6.0, -6.0], [-6.0, 6.0]], np.float32)
    start = 1.3 if peaks_tell else 4.0
    dense = classifier(weight)
    tuner = ExponentTuner(dense, start, rate=0.1, steps=50)
    for step in range(50):
        part = slice(4 * (step % 10), 4 * (step % 10) + 4)
        tuner.step(maps[part], labels[part])
    assert tuner.p > 3 if peaks_tell else tuner.p < 1.7
    before, after = (loss_by_hand(maps, labels, weight, p) for p in (start, tuner.p))
    assert after < 0.5 * before
    # Nothing but p was trained.
    np.testing.assert_array_equal(dense.weight.asnumpy(), weight)


def test_p_is_at_least_one() -> None:
    maps, labels = problem(peaks_tell=False)
    weight = np.array([[6.0, -6.0], [-6.0, 6.0]], np.float32)
    tuner = ExponentTuner(classifier(weight), 1.2, rate=50.0, steps=3)
    for step in range(2):
        tuner.step(maps[4 * step : 4 * step + 4], labels[4 * step : 4 * step + 4])
    assert tuner.p == 1.0


def test_a_non_finite_gradient_is_skipped() -> None:
    maps, labels = problem(peaks_tell=True)
    tuner = ExponentTuner(classifier(np.eye(2, dtype=np.float32)), 2.0, rate=0.1, steps=3)
    tuner.step(maps[:4], labels[:4])
    p = tuner.p
    broken = maps[4:8].copy()
    broken[0, 0, 0, 0] = np.inf
    tuner.step(broken, labels[4:8])
    assert tuner.p == p
