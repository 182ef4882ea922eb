"""Triplet loss against NumPy loops."""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from multigrain.losses.instance import TripletLoss

pytestmark = pytest.mark.mindspore


def by_loops(e: np.ndarray, ids: np.ndarray, margin: float) -> float:
    u = e / np.linalg.norm(e, axis=1, keepdims=True)
    d = ((u[:, None] - u[None]) ** 2).sum(2)
    terms = []
    for i in range(len(e)):
        others = [k for k in range(len(e)) if ids[k] != ids[i]]
        for j in range(len(e)):
            if i == j or ids[i] != ids[j]:
                continue
            farther = [d[i, k] for k in others if d[i, k] > d[i, j]]
            chosen = min(farther) if farther else max(d[i, k] for k in others)
            terms.append(max(0.0, d[i, j] - chosen + margin))
    return float(np.mean(terms))


@pytest.mark.parametrize("spread", [0.2, 1.5])
def test_semi_hard_negatives_equal_the_loops(spread: float) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([4, 4, 4, 1, 1, 1, 8, 8], np.int32)
    e = (rng.random((9, 6))[ids] + spread * rng.random((8, 6))).astype(np.float32)
    found = TripletLoss(0.1)(Tensor(e), Tensor(ids)).asnumpy()
    assert float(found) == pytest.approx(by_loops(e.astype(np.float64), ids, 0.1), rel=1e-4)


def test_the_gradient_equals_finite_differences() -> None:
    """The choice of the negative has no gradient."""
    rng = np.random.default_rng(1)
    ids = np.repeat(np.arange(4), 2).astype(np.int32)
    e = rng.random((8, 6)).astype(np.float32)
    loss = TripletLoss(0.1)
    gradient = mindspore.grad(lambda x: loss(x, Tensor(ids)))(Tensor(e)).asnumpy()
    assert (np.abs(gradient).max(1) > 1e-3).any()
    for index in np.ndindex(8, 6):
        step = np.zeros_like(e, np.float64)
        step[index] = 1e-6
        up, down = by_loops(e + step, ids, 0.1), by_loops(e - step, ids, 0.1)
        assert gradient[index] == pytest.approx((up - down) / 2e-6, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("ids", [[0, 1, 2], [0, 0, 0]])
def test_without_pairs_or_other_images_the_loss_is_zero(ids: list[int]) -> None:
    loss = TripletLoss(0.1)
    e = Tensor(np.random.default_rng(0).random((3, 4)).astype(np.float32))
    value, gradient = mindspore.value_and_grad(lambda x: loss(x, Tensor(np.array(ids, np.int32))))(
        e
    )
    assert float(value.asnumpy()) == 0
    assert (gradient.asnumpy() == 0).all()
