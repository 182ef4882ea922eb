"""Kronecker factors and damping against the Fisher matrix that they approximate.

The dense empirical Fisher of a layer is the mean over the examples of the outer product of each
example's gradient with itself, computed here by differentiating one example at a time.
"""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn

from multigrain.model.layers import Conv2d, Dense
from multigrain.optim.thor.blocks import BlockLayout, KroneckerFactors, split_damping
from multigrain.optim.thor.capture import CapturedLayer, attach_taps
from multigrain.optim.thor.inverse import damped_inverse
from multigrain.optim.thor.preconditioner import precondition
from tests.optim.thor.exact_damping import solve_in_the_eigenbasis

pytestmark = pytest.mark.mindspore


def filled(net: nn.Cell) -> nn.Cell:
    rng = np.random.default_rng(1)
    for p in net.trainable_params():
        p.set_data(Tensor(rng.standard_normal(p.shape).astype(np.float32)))
    return net


def capture(
    net: nn.Cell, x: np.ndarray, weights: np.ndarray
) -> list[tuple[CapturedLayer, np.ndarray, np.ndarray]]:
    """sqrt(T) A and sqrt(T) G of each layer, for the mean over the examples of sum(weights * y)."""
    layers = attach_taps(net, block_size=1000)
    slots = mindspore.ParameterTuple([p for x in layers for p in x.slots])

    def loss(images: Tensor, w: Tensor) -> Tensor:
        return (net(images) * w).sum() / len(images)

    _, found = mindspore.value_and_grad(loss, None, slots)(Tensor(x), Tensor(weights))
    arrays = [f.asnumpy()[0].astype(np.float64) for f in found]
    return [(layer, arrays[2 * k], arrays[2 * k + 1]) for k, layer in enumerate(layers)]


def dense_fisher(
    net: nn.Cell, layer: CapturedLayer, x: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    def loss(images: Tensor, w: Tensor) -> Tensor:
        return (net(images) * w).sum()

    differentiate = mindspore.grad(loss, None, mindspore.ParameterTuple([layer.weight]))
    total = 0.0
    for b in range(len(x)):
        (gradient,) = differentiate(Tensor(x[b : b + 1]), Tensor(weights[b : b + 1]))
        vector = gradient.asnumpy().ravel().astype(np.float64)
        total = total + np.outer(vector, vector)
    return np.asarray(total / len(x))


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_for_one_example_and_position_the_factors_are_exact(kind: str) -> None:
    rng = np.random.default_rng(0)
    net = filled(Dense(5, 3) if kind == "dense" else Conv2d(2, 3, (2, 3), stride=2))
    x = rng.standard_normal((1, 5) if kind == "dense" else (1, 2, 3, 4)).astype(np.float32)
    weights = rng.standard_normal(net(Tensor(x)).shape).astype(np.float32)
    ((layer, a, g),) = capture(net, x, weights)
    expected = dense_fisher(net, layer, x, weights)
    np.testing.assert_allclose(np.kron(g, a), expected, rtol=1e-4, atol=1e-5)


def linear_net() -> nn.SequentialCell:
    return filled(nn.SequentialCell([Dense(4, 5), Dense(5, 3), Dense(3, 2)]))


def test_for_a_linear_network_with_independent_inputs_the_factors_are_exact() -> None:
    """Every input with every output derivative: the mean of the products is their product."""
    rng = np.random.default_rng(0)
    inputs, derivatives = rng.standard_normal((6, 4)), rng.standard_normal((5, 2))
    x = np.repeat(inputs, 5, 0).astype(np.float32)
    weights = np.tile(derivatives, (6, 1)).astype(np.float32)
    net = linear_net()
    for p in net.trainable_params():
        if p.name.endswith("bias"):
            p.set_data(Tensor(np.zeros(p.shape, np.float32)))
    captured = capture(net, x, weights)
    assert [layer.name for layer, _, _ in captured] == ["0", "1", "2"]
    for layer, a, g in captured:
        expected = dense_fisher(net, layer, x, weights)
        error = np.abs(np.kron(g, a) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, layer.name


def test_for_other_batches_the_factors_are_an_approximation() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 4)).astype(np.float32)
    weights = x[:, :2] ** 2  # depends on the input
    net = linear_net()
    layer, a, g = capture(net, x, weights)[0]
    expected = dense_fisher(net, layer, x, weights)
    assert np.abs(np.kron(g, a) - expected).max() > 0.1 * np.abs(expected).max()


def factors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (6, 6) of large and G (4, 4) of small eigenvalues, and a gradient."""
    rng = np.random.default_rng(0)
    a, g = rng.standard_normal((6, 40)), rng.standard_normal((4, 40))
    return 3.0 * a @ a.T / 40, 0.01 * g @ g.T / 40, rng.standard_normal((4, 6))


def factored(
    gradient: np.ndarray, a: np.ndarray, g: np.ndarray, damping: float, *, pi_correction: bool
) -> np.ndarray:
    """Computes the optimizer's preconditioned gradient."""
    a_layout, g_layout = BlockLayout.of(len(a), 128), BlockLayout.of(len(g), 128)
    pair = KroneckerFactors(a[None].astype(np.float32), g[None].astype(np.float32))
    on_a, on_g = split_damping(pair, (len(a), len(g)), damping, pi_correction=pi_correction)
    inverses = damped_inverse(pair.a, on_a, a_layout), damped_inverse(pair.g, on_g, g_layout)
    return precondition(Tensor(np.float32(gradient)), *(Tensor(x) for x in inverses)).asnumpy()


@pytest.mark.parametrize("damping", [1e-4, 0.03, 10.0])
def test_the_eigenbasis_gives_the_dense_solve_with_exact_damping(damping: float) -> None:
    a, g, gradient = factors()
    fisher = np.kron(g, a) + damping * np.eye(24)
    expected = np.linalg.solve(fisher, gradient.ravel()).reshape(4, 6)
    found = solve_in_the_eigenbasis(gradient, a, g, damping)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("damping", [1e-4, 0.03, 10.0])
@pytest.mark.parametrize("pi_correction", [False, True])
def test_damping_each_factor_gives_a_shorter_step_than_exact_damping(
    damping: float, pi_correction: bool
) -> None:
    """(A + x)(G + y) = AG + xy + a positive rest, so <g, P g> can only be smaller."""
    a, g, gradient = factors()
    exact = solve_in_the_eigenbasis(gradient, a, g, damping)
    found = factored(gradient, a, g, damping, pi_correction=pi_correction)
    assert 0 < (gradient * found).sum() < (gradient * exact).sum()


def test_pi_correction_is_closer_to_exact_damping() -> None:
    a, g, gradient = factors()
    exact = solve_in_the_eigenbasis(gradient, a, g, 0.03)
    errors = [
        np.linalg.norm(factored(gradient, a, g, 0.03, pi_correction=pi) - exact)
        for pi in (False, True)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("pi_correction", [False, True])
def test_with_large_damping_both_have_the_gradients_direction(pi_correction: bool) -> None:
    a, g, gradient = factors()
    damping = 1e10
    for step in (
        solve_in_the_eigenbasis(gradient, a, g, damping),
        factored(gradient, a, g, damping, pi_correction=pi_correction),
    ):
        np.testing.assert_allclose(damping * step, gradient, rtol=1e-3)
