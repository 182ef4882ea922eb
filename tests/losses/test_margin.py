"""Margin loss and its sampling against NumPy loops and the published formula."""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from multigrain.losses.instance import (
    MarginLoss,
    distances,
    log_weights,
    positive_pairs,
    same_image,
    sample_negatives,
)

pytestmark = pytest.mark.mindspore


def unit(e: np.ndarray) -> np.ndarray:
    return e / np.linalg.norm(e, axis=1, keepdims=True)


def gumbel(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gumbel(size=(n, n)).astype(np.float32)


@mindspore.jit
def sample(distance: Tensor, ids: Tensor, noise: Tensor, dimension: int) -> Tensor:
    same = same_image(ids)
    return sample_negatives(distance, same, positive_pairs(same), noise, dimension)


def draw(e: np.ndarray, ids: np.ndarray, noise: np.ndarray) -> np.ndarray:
    u = unit(e)
    d = np.linalg.norm(u[:, None] - u[None], axis=2).astype(np.float32)
    return sample(Tensor(d), Tensor(ids), Tensor(noise), e.shape[1]).asnumpy()


def by_loops(
    e: np.ndarray, ids: np.ndarray, negative: np.ndarray, beta: float, alpha: float
) -> tuple[float, float]:
    """Computes the loss and its derivative by beta."""
    u = unit(e.astype(np.float64))
    total, slope, active = 0.0, 0.0, 0
    for i in range(len(e)):
        for j in range(len(e)):
            if i == j or ids[i] != ids[j]:
                continue
            k = negative[i, j]
            assert ids[k] != ids[i]
            pull = alpha + np.sqrt(((u[i] - u[j]) ** 2).sum() + 1e-8) - beta
            push = alpha - np.sqrt(((u[i] - u[k]) ** 2).sum() + 1e-8) + beta
            for value, sign in ((pull, -1), (push, 1)):
                if value > 0:
                    total += value
                    slope += sign
                    active += 1
    return total / max(active, 1), slope / max(active, 1)


@pytest.mark.parametrize("beta", [0.4, 1.2])
def test_loss_and_gradient_of_beta_equal_the_loops(beta: float) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([7, 7, 7, 2, 2, 2, 5, 5, 9], np.int32)
    centers = rng.random((10, 16))
    e = (centers[ids] + 0.3 * rng.random((9, 16))).astype(np.float32)
    noise = gumbel(9)
    loss = MarginLoss(0.2, beta)
    run = mindspore.value_and_grad(
        lambda x: loss(x, Tensor(ids), Tensor(noise)), 0, mindspore.ParameterTuple([loss.beta])
    )
    value, (_, (slope,)) = run(Tensor(e))
    expected, expected_slope = by_loops(e, ids, draw(e, ids, noise), beta, 0.2)
    assert float(value.asnumpy()) == pytest.approx(expected, rel=1e-4)
    assert float(slope.asnumpy()) == pytest.approx(expected_slope, abs=1e-6)


def test_gradient_of_the_embedding_equals_finite_differences() -> None:
    rng = np.random.default_rng(1)
    ids = np.repeat(np.arange(4), 2).astype(np.int32)
    e = rng.random((8, 6)).astype(np.float32)
    noise = gumbel(8)
    loss = MarginLoss(0.2, 0.6)
    gradient = mindspore.grad(lambda x: loss(x, Tensor(ids), Tensor(noise)))(Tensor(e)).asnumpy()
    negative = draw(e, ids, noise)
    for index in [(0, 0), (3, 2), (7, 5)]:
        step = np.zeros_like(e, np.float64)
        step[index] = 1e-6
        up, _ = by_loops(e + step, ids, negative, 0.6, 0.2)
        down, _ = by_loops(e - step, ids, negative, 0.6, 0.2)
        assert gradient[index] == pytest.approx((up - down) / 2e-6, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("dimension", [4, 64, 2048])
def test_the_weight_is_one_over_the_density_of_distances(dimension: int) -> None:
    z = np.array([0.1, 0.5, 0.6, 1.0, 1.3, 1.4, 1.9], np.float32)
    found = log_weights(Tensor(z), dimension).asnumpy()
    near = np.clip(z.astype(np.float64), 0.5, 1.4)
    density = (dimension - 2) * np.log(near) + (dimension - 3) / 2 * np.log(1 - near**2 / 4)
    np.testing.assert_allclose(found, -density, rtol=1e-5, atol=1e-4)


def test_if_a_negative_is_near_no_far_one_is_sampled() -> None:
    """Negatives beyond 1.4 have no loss; 1.39 and 1.41 have about the same weight."""
    ids = np.array([0, 0, 1, 2], np.int32)
    distance = np.zeros((4, 4), np.float32)
    distance[0] = [0, 0.7, 1.41, 1.39]
    drawn = {
        int(sample(Tensor(distance), Tensor(ids), Tensor(gumbel(4, seed)), 4).asnumpy()[0, 1])
        for seed in range(30)
    }
    assert drawn == {3}


def test_negatives_have_the_published_distribution() -> None:
    rng = np.random.default_rng(2)
    ids = np.array([0, 0, 1, 2, 3, 4, 5], np.int32)
    e = (0.4 + rng.random((7, 8))).astype(np.float32)
    e[6] = -e[0]  # at distance 2 from the anchor: never sampled
    u = unit(e.astype(np.float64))
    z = np.clip(np.linalg.norm(u[0] - u, axis=1), 0.5, None)
    weights = np.zeros(7)
    weights[2:6] = 1 / (z[2:6] ** (8 - 2) * (1 - z[2:6] ** 2 / 4) ** ((8 - 3) / 2))
    expected = weights / weights.sum()
    draws = [draw(e, ids, gumbel(7, seed))[0, 1] for seed in range(600)]
    share = np.bincount(draws, minlength=7) / len(draws)
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / np.sqrt(600))


def test_an_anchor_samples_different_negatives_for_its_positives() -> None:
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(3), 3).astype(np.int32)
    negative = draw(rng.random((9, 4)).astype(np.float32), ids, gumbel(9))
    for i in range(9):
        drawn = [negative[i, j] for j in range(9) if j != i and ids[j] == ids[i]]
        assert len(set(drawn)) == 2


def test_without_a_near_negative_any_other_image_is_sampled() -> None:
    ids = np.array([0, 0, 1, 1], np.int32)
    e = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0]], np.float32)
    drawn = {int(draw(e, ids, gumbel(4, seed))[0, 1]) for seed in range(40)}
    assert drawn == {2, 3}


def test_a_batch_of_one_image_has_only_positives() -> None:
    e = np.random.default_rng(4).random((4, 6)).astype(np.float32)
    ids = Tensor(np.zeros(4, np.int32))
    found = float(MarginLoss(0.2, 0.3)(Tensor(e), ids, Tensor(gumbel(4))).asnumpy())
    u = unit(e.astype(np.float64))
    pulls = [
        0.2 + np.sqrt(((u[i] - u[j]) ** 2).sum() + 1e-8) - 0.3
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    assert found == pytest.approx(np.mean([pull for pull in pulls if pull > 0]), rel=1e-4)


def test_identical_embeddings_have_a_finite_gradient() -> None:
    """Also if rounding makes a cosine exactly 1 or slightly larger."""
    exact = np.eye(2, 3, dtype=np.float32).repeat(2, 0)
    apart = distances(Tensor(exact)).asnumpy()
    np.testing.assert_allclose(apart[0], [1e-4, 1e-4, 2**0.5, 2**0.5], rtol=1e-6)
    rounded = np.random.default_rng(5).random((32, 2048)).astype(np.float32).repeat(2, 0)
    for e in (exact, rounded):
        ids, noise = Tensor(np.arange(len(e), dtype=np.int32) // 2), Tensor(gumbel(len(e)))
        loss = MarginLoss(0.2, 0.1)
        value, gradient = mindspore.value_and_grad(lambda x: loss(x, ids, noise))(Tensor(e))  # noqa: B023
        assert np.isfinite(value.asnumpy())
        assert np.isfinite(gradient.asnumpy()).all()


def test_weights_of_large_embeddings_stay_finite() -> None:
    z = Tensor(np.array([0.0, 0.5, 1.0, 1.4, 2.0], np.float32))
    values = log_weights(z, 2048).asnumpy()
    assert np.isfinite(values).all()
    assert values[0] == values[1] > values[2]


@pytest.mark.parametrize(
    ("ids", "zero"),
    [([0, 1, 2, 3], True), ([0, 0, 0, 0], False), ([0, 0, 1, 2], False)],
)
def test_degenerate_batches_are_finite(ids: list[int], zero: bool) -> None:
    e = np.ones((4, 5), np.float32)  # identical embeddings: every distance is 0
    e[3] = 0
    loss = MarginLoss(0.2, 0.1)
    run = mindspore.value_and_grad(
        lambda x: loss(x, Tensor(np.array(ids, np.int32)), Tensor(gumbel(4)))
    )
    value, gradient = run(Tensor(e))
    assert np.isfinite(gradient.asnumpy()).all()
    assert np.isfinite(value.asnumpy())
    assert (float(value.asnumpy()) == 0) is zero
