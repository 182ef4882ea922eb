"""Damped inverses of blocks."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.optim.thor.blocks import BlockLayout
from multigrain.optim.thor.inverse import damped_inverse

pytestmark = pytest.mark.mindspore


def blocks(layout: BlockLayout, rank: int = 1000) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((layout.count, layout.size, rank))
    last = layout.valid(layout.count - 1)
    x[-1, last:] = 0
    return (x @ x.transpose(0, 2, 1) / rank).astype(np.float32)


@pytest.mark.parametrize("dim", [5, 8, 19, 24])
def test_inverse_of_each_block_and_identity_in_the_padding(dim: int) -> None:
    layout = BlockLayout.of(dim, 8)
    f = blocks(layout)
    found = damped_inverse(f, 0.1, layout)
    assert found is not None
    assert found.dtype == np.float32
    for index in range(layout.count):
        valid = layout.valid(index)
        expected = np.eye(layout.size)
        dense = f[index, :valid, :valid].astype(np.float64) + 0.1 * np.eye(valid)
        expected[:valid, :valid] = np.linalg.inv(dense)
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[index], found[index].T)


def test_a_block_made_indefinite_by_rounding_is_inverted() -> None:
    layout = BlockLayout.of(64, 128)
    f = 1e6 * blocks(layout, rank=3)  # condition number about 1e11
    found = damped_inverse(f, 1e-4, layout)
    assert found is not None
    assert np.isfinite(found).all()
    # Directions orthogonal to F's three are multiplied by 1/damping.
    values = np.linalg.eigvalsh(found[0].astype(np.float64))
    assert values.max() == pytest.approx(1e4, rel=0.5)


@pytest.mark.parametrize(
    ("scale", "rank", "damping"), [(1.0, 1000, 0.1), (1e6, 3, 1e-4)], ids=["cholesky", "eigen"]
)
def test_only_the_upper_triangle_of_a_block_is_read(
    scale: float, rank: int, damping: float
) -> None:
    layout = BlockLayout.of(64, 128)
    f = scale * blocks(layout, rank)
    spoilt = f.copy()
    spoilt[:, *np.tril_indices(64, -1)] = 7 * scale
    found = damped_inverse(spoilt, damping, layout)
    assert found is not None
    np.testing.assert_array_equal(found, damped_inverse(f, damping, layout))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_blocks_are_rejected(bad: float) -> None:
    layout = BlockLayout.of(8, 8)
    f = blocks(layout)
    f[0, 1, 2] = bad
    assert damped_inverse(f, 0.1, layout) is None
    assert damped_inverse(blocks(layout), bad, layout) is None
    assert damped_inverse(blocks(layout), 0.0, layout) is None


def test_an_inverse_that_overflows_float32_is_rejected() -> None:
    layout = BlockLayout.of(2, 8)
    assert damped_inverse(np.zeros((1, 2, 2), np.float32), 1e-42, layout) is None
