"""Traces, pi correction and running averages of factors."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.model.layers import Dense
from multigrain.optim.thor.blocks import BlockLayout, KroneckerFactors, split_damping, trace
from multigrain.optim.thor.capture import CapturedLayer
from multigrain.optim.thor.curvature import FactorAverage
from multigrain.optim.thor.preconditioner import LayerPreconditioner

pytestmark = pytest.mark.mindspore


def blocks(layout: BlockLayout, seed: int, scale: float = 1.0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((layout.count, layout.size, 50))
    x[-1, layout.valid(layout.count - 1) :] = 0
    return (scale * x @ x.transpose(0, 2, 1) / 50).astype(np.float32)


A, G = BlockLayout.of(13, 4), BlockLayout.of(7, 4)
SOME = KroneckerFactors(blocks(A, 0, 30.0), blocks(G, 1, 0.02))


def layer() -> CapturedLayer:
    return CapturedLayer("x", "dense", Dense(13, 7), A, G, LayerPreconditioner("x", A, G))


def add(average: FactorAverage, factors: KroneckerFactors) -> KroneckerFactors:
    means = average.means({0: factors})
    average.accept(means)
    return means[0]


@pytest.mark.parametrize("size", [3, 4, 13, 128])
def test_splitting_into_blocks_keeps_the_trace(size: int) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 13))
    full = rows.T @ rows / 40
    layout = BlockLayout.of(13, size)
    cut = np.zeros(layout.shape, np.float32)
    for index in range(layout.count):
        part = slice(index * layout.size, index * layout.size + layout.valid(index))
        cut[index, : layout.valid(index), : layout.valid(index)] = full[part, part]
    squares = (rows**2).sum() / 40
    assert np.trace(full) == pytest.approx(squares)
    assert trace(cut) == pytest.approx(squares, rel=1e-6)


def test_without_pi_correction_both_sides_get_the_root_of_the_damping() -> None:
    assert split_damping(SOME, (13, 7), 0.09, pi_correction=False) == pytest.approx((0.3, 0.3))


def test_pi_correction_divides_the_damping_by_the_mean_eigenvalues() -> None:
    on_a, on_g = split_damping(SOME, (13, 7), 0.09, pi_correction=True)
    mean_a = np.concatenate([np.linalg.eigvalsh(b) for b in SOME.a.astype(float)]).sum() / 13
    mean_g = np.concatenate([np.linalg.eigvalsh(b) for b in SOME.g.astype(float)]).sum() / 7
    assert on_a * on_g == pytest.approx(0.09)
    assert on_a / mean_a == pytest.approx(on_g / mean_g, rel=1e-5)
    assert on_a > 10 * on_g


@pytest.mark.parametrize(
    "broken",
    [
        KroneckerFactors(0 * SOME.a, SOME.g),
        KroneckerFactors(SOME.a, 0 * SOME.g),
        KroneckerFactors(np.full_like(SOME.a, np.nan), SOME.g),
        KroneckerFactors(np.full_like(SOME.a, np.inf), SOME.g),
    ],
)
def test_pi_is_one_without_a_valid_ratio(broken: KroneckerFactors) -> None:
    assert split_damping(broken, (13, 7), 0.04, pi_correction=True) == pytest.approx((0.2, 0.2))


def test_the_first_mean_equals_the_first_factors() -> None:
    mean = add(FactorAverage([layer()], 0.95), SOME)
    np.testing.assert_array_equal(mean.a, SOME.a)
    np.testing.assert_array_equal(mean.g, SOME.g)


def test_the_mean_weighs_the_kth_last_by_decay_to_the_k() -> None:
    average = FactorAverage([layer()], 0.8)
    values = [KroneckerFactors(blocks(A, 2 * k), blocks(G, 2 * k + 1)) for k in range(5)]
    for value in values:
        mean = add(average, value)
    weights = np.array([0.8**k for k in range(5)])[::-1]
    weights /= weights.sum()
    for name in ("a", "g"):
        expected = sum(w * getattr(v, name) for w, v in zip(weights, values, strict=True))
        np.testing.assert_allclose(getattr(mean, name), expected, rtol=1e-5, atol=1e-6)


def test_a_mean_that_is_not_accepted_changes_no_state() -> None:
    average = FactorAverage([layer()], 0.8)
    add(average, SOME)
    before = average.state()
    bad = KroneckerFactors(SOME.a, np.full_like(SOME.g, np.nan))
    assert np.isnan(average.means({0: bad})[0].trace)  # the inversion detects it
    for name, value in average.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_the_mean_continues_from_its_state() -> None:
    first, second = FactorAverage([layer()], 0.8), FactorAverage([layer()], 0.8)
    add(first, SOME)
    second.load_state(first.state())
    other = KroneckerFactors(blocks(A, 8), blocks(G, 9))
    found, expected = add(second, other), add(first, other)
    np.testing.assert_array_equal(found.a, expected.a)
    np.testing.assert_array_equal(found.g, expected.g)
    assert found.trace == expected.trace
