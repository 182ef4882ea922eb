"""Blockwise preconditioning against a dense solve."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor
from scipy.linalg import block_diag

from multigrain.optim.thor.blocks import BlockLayout
from multigrain.optim.thor.inverse import damped_inverse
from multigrain.optim.thor.preconditioner import LayerPreconditioner

pytestmark = pytest.mark.mindspore

ROOT = 0.3  # sqrt(lambda)


def factor(layout: BlockLayout, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns padded blocks and their dense block-diagonal matrix."""
    rng = np.random.default_rng(seed)
    blocks = np.zeros(layout.shape, np.float32)
    for index in range(layout.count):
        valid = layout.valid(index)
        x = rng.standard_normal((valid, 40))
        blocks[index, :valid, :valid] = x @ x.T / 40
    dense = block_diag(*(b[: layout.valid(i), : layout.valid(i)] for i, b in enumerate(blocks)))
    return blocks, dense


@pytest.mark.parametrize(
    ("shape", "block"),
    [((6, 5), 128), ((8, 12), 4), ((7, 9), 4), ((4, 13), 4), ((9, 4), 4), ((5, 2, 3, 3), 4)],
)
def test_equals_the_dense_solve(shape: tuple[int, ...], block: int) -> None:
    o, i = shape[0], int(np.prod(shape[1:]))
    a, g = BlockLayout.of(i, block), BlockLayout.of(o, block)
    (a_blocks, a_dense), (g_blocks, g_dense) = factor(a, 1), factor(g, 2)
    cell = LayerPreconditioner("layer", a, g)
    cell.a_inverse.set_data(Tensor(damped_inverse(a_blocks, ROOT, a)))
    cell.g_inverse.set_data(Tensor(damped_inverse(g_blocks, ROOT, g)))
    gradient = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    # (G (x) A) vec(g), row-major, for the damped factors.
    fisher = np.kron(g_dense + ROOT * np.eye(o), a_dense + ROOT * np.eye(i))
    expected = np.linalg.solve(fisher, gradient.ravel().astype(np.float64)).reshape(shape)
    np.testing.assert_allclose(cell(Tensor(gradient)).asnumpy(), expected, rtol=1e-3, atol=1e-4)


def test_before_the_first_refresh_the_gradient_is_unchanged() -> None:
    cell = LayerPreconditioner("layer", BlockLayout.of(9, 4), BlockLayout.of(7, 4))
    gradient = np.random.default_rng(3).standard_normal((7, 9)).astype(np.float32)
    np.testing.assert_array_equal(cell(Tensor(gradient)).asnumpy(), gradient)


def test_strong_damping_keeps_the_direction_of_the_gradient() -> None:
    a, g = BlockLayout.of(6, 4), BlockLayout.of(5, 4)
    cell = LayerPreconditioner("layer", a, g)
    cell.a_inverse.set_data(Tensor(damped_inverse(factor(a, 1)[0], 1e4, a)))
    cell.g_inverse.set_data(Tensor(damped_inverse(factor(g, 2)[0], 1e4, g)))
    gradient = np.random.default_rng(3).standard_normal((5, 6)).astype(np.float32)
    found = 1e8 * cell(Tensor(gradient)).asnumpy()  # lambda P(g) -> g
    np.testing.assert_allclose(found, gradient, rtol=2e-3, atol=2e-3)
