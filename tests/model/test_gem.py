"""GeM pooling against NumPy and finite differences."""

from __future__ import annotations

import math

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from multigrain.errors import MultigrainError
from multigrain.model.gem import EPSILON, GeM

pytestmark = pytest.mark.mindspore


def reference(x: np.ndarray, p: float) -> np.ndarray:
    x = x.astype(np.float64)
    if p == 1:
        return x.mean((2, 3))
    if math.isinf(p):
        return x.max((2, 3))
    return (np.maximum(x, EPSILON) ** p).mean((2, 3)) ** (1 / p)


@pytest.fixture
def maps() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.maximum(rng.standard_normal((2, 3, 4, 5)), 0).astype(np.float32)


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 8.0, math.inf])
def test_value_is_the_generalized_mean(maps: np.ndarray, p: float) -> None:
    np.testing.assert_allclose(GeM(p)(Tensor(maps)).asnumpy(), reference(maps, p), rtol=2e-6)


def test_the_clamp_is_the_published_one() -> None:
    assert EPSILON == 1e-6
    x = np.array([-3.0, 1e-7, 1e-6, 2e-6], np.float32).reshape(1, 1, 2, 2)
    found = GeM(1.0, learn=True)(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, (3 * 1e-6 + 2e-6) / 4, rtol=1e-4)


@pytest.mark.parametrize("p", [1.0, 3.0, math.inf])
def test_half_precision_is_pooled_in_float32(maps: np.ndarray, p: float) -> None:
    half = maps.astype(np.float16)
    found = GeM(p)(Tensor(half))
    assert found.dtype == mindspore.float32
    np.testing.assert_allclose(found.asnumpy(), reference(half, p), rtol=2e-6)


def test_average_pooling_does_not_clamp_negative_values() -> None:
    x = np.full((1, 1, 2, 2), -1.0, np.float32)
    assert GeM(1.0)(Tensor(x)).asnumpy() == -1.0


def test_a_zero_channel_is_pooled_to_epsilon_without_gradient() -> None:
    x = Tensor(np.zeros((1, 2, 3, 3), np.float32))
    net = GeM(3.0)
    np.testing.assert_allclose(net(x).asnumpy(), EPSILON, rtol=1e-6)
    gradient = mindspore.grad(lambda z: net(z).sum())(x).asnumpy()
    assert (gradient == 0).all()


def test_values_whose_powers_overflow_float32_are_pooled(maps: np.ndarray) -> None:
    large = maps * 1e20
    np.testing.assert_allclose(GeM(5.0)(Tensor(large)).asnumpy(), reference(large, 5.0), rtol=2e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_gradient_of_the_input_equals_finite_differences(maps: np.ndarray, p: float) -> None:
    net = GeM(p)
    weights = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)

    def loss(x: Tensor) -> Tensor:
        return (net(x) * Tensor(weights)).sum()

    found = mindspore.grad(loss)(Tensor(maps)).asnumpy()
    for index in [(0, 0, 1, 2), (0, 2, 3, 4), (1, 1, 0, 0), (1, 2, 2, 3)]:
        step = np.zeros_like(maps, np.float64)
        step[index] = 1e-5
        up = (reference(maps + step, p) * weights).sum()
        down = (reference(maps - step, p) * weights).sum()
        if maps[index] == 0 and p != 1:
            assert found[index] == 0  # the clamp stops the gradient
        else:
            assert found[index] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("p", [1.0, 2.5, 4.0])
def test_gradient_of_the_exponent_equals_finite_differences(maps: np.ndarray, p: float) -> None:
    net = GeM(p, learn=True)

    def loss() -> Tensor:
        return net(Tensor(maps)).sum()

    (gradient,) = mindspore.grad(loss, None, mindspore.ParameterTuple([net.p]))()

    def total(q: float) -> float:
        x = np.maximum(maps.astype(np.float64), EPSILON)
        return float(((x**q).mean((2, 3)) ** (1 / q)).sum())

    expected = (total(p + 1e-5) - total(p - 1e-5)) / 2e-5
    assert float(gradient.asnumpy()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("p", "learn"), [(0.5, False), (float("nan"), False), (math.inf, True)])
def test_an_invalid_exponent_is_refused(p: float, learn: bool) -> None:
    with pytest.raises(MultigrainError, match="gem_p"):
        GeM(p, learn=learn)
