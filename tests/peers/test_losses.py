"""Values and gradients of GeM and the losses, against PyTorch's autograd."""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
import torch
from mindspore import Tensor, ops
from torch.nn import functional

from multigrain.losses.instance import (
    MarginLoss,
    distances,
    l2_normalize,
    positive_pairs,
    same_image,
    sample_negatives,
)
from multigrain.losses.objective import SmoothedCrossEntropy
from multigrain.model.gem import GeM
from tests.peers.figures import record
from tests.peers.networks import gem

pytestmark = pytest.mark.mindspore

TOLERANCE = 1e-4


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("p", [1.0, 1.7, 3.0, 6.0])
@pytest.mark.parametrize("learn", [True, False])
def test_gem_and_its_gradients(p: float, learn: bool) -> None:
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((2, 5, 4, 3)), 0).astype(np.float32)
    weight = rng.standard_normal((2, 5)).astype(np.float32)
    pool = GeM(p, learn=learn)
    parameters = [pool.p] if learn else None

    def loss(x: Tensor) -> Tensor:
        return ops.ReduceSum()(pool(x) * Tensor(weight))

    grads = mindspore.value_and_grad(loss, 0, parameters)(Tensor(x))[1]
    # float64: the reference has no protection against overflow.
    tx = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    tp = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    # p = 1 without learning is average pooling, which has no clamp.
    y = tx.mean((2, 3)) if p == 1 and not learn else gem(tx, tp)
    (y * torch.from_numpy(weight)).sum().backward()
    value = relative(pool(Tensor(x)).asnumpy(), y.detach().numpy())
    grad_x = grads[0] if learn else grads
    assert tx.grad is not None
    errors = [value, relative(grad_x.asnumpy(), tx.grad.numpy())]
    if learn:
        assert tp.grad is not None
        errors.append(relative(grads[1][0].asnumpy(), tp.grad.numpy()))
    record(f"GeM p={p:g}: value, d/dx{', d/dp' if learn else ''}", *errors)
    assert max(errors) <= TOLERANCE


def _negatives(embedding: Tensor, instances: Tensor, noise: Tensor) -> np.ndarray:
    distance = distances(l2_normalize(embedding))
    same = same_image(instances)
    chosen = sample_negatives(distance, same, positive_pairs(same), noise, embedding.shape[1])
    return chosen.asnumpy()


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_margin_loss_with_the_same_negatives(spread: float) -> None:
    """Three copies of four images; near ones activate negatives, far ones positives."""
    rng = np.random.default_rng(1)
    instances = np.repeat(np.arange(4), 3).astype(np.int32)
    centers = rng.standard_normal((4, 16))
    copies = centers[instances] + spread * rng.standard_normal((12, 16))
    embedding = np.maximum(copies, 0).astype(np.float32)
    noise = rng.gumbel(size=(12, 12)).astype(np.float32)
    loss = MarginLoss(0.2, 0.9)

    def value(e: Tensor) -> Tensor:
        return loss(e, Tensor(instances), Tensor(noise))

    found, (grad, (grad_beta,)) = mindspore.value_and_grad(value, 0, [loss.beta])(Tensor(embedding))

    e = torch.tensor(embedding, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    unit = functional.normalize(e, dim=1)
    chosen = _negatives(Tensor(embedding), Tensor(instances), Tensor(noise))
    terms = []
    for i in range(12):
        for j in range(12):
            if i != j and instances[i] == instances[j]:
                k = int(chosen[i, j])
                assert instances[k] != instances[i]
                for other, sign in ((j, 1.0), (k, -1.0)):
                    d = ((unit[i] - unit[other]).pow(2).sum() + 1e-8).sqrt()
                    terms.append(torch.relu(0.2 + sign * (d - beta)))
    active = sum(bool(t > 0) for t in terms)
    assert 0 < active < len(terms)
    expected = torch.stack(terms).sum() / active
    expected.backward()
    assert e.grad is not None
    assert beta.grad is not None
    errors = [
        relative(found.asnumpy(), expected.detach().numpy()),
        relative(grad.asnumpy(), e.grad.numpy()),
        float(np.abs(grad_beta.asnumpy() - beta.grad.numpy())),
    ]
    record(f"margin loss, {active} of {len(terms)} active: value, d/de, d/dbeta", *errors)
    assert max(errors) <= TOLERANCE


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_cross_entropy(smoothing: float) -> None:
    rng = np.random.default_rng(2)
    logits = (5 * rng.standard_normal((6, 11))).astype(np.float32)
    labels = rng.integers(0, 11, 6)
    loss = SmoothedCrossEntropy(smoothing)

    def value(logits: Tensor) -> Tensor:
        return loss(logits, Tensor(labels.astype(np.int32)))

    found, grad = mindspore.value_and_grad(value)(Tensor(logits))
    x = torch.tensor(logits, requires_grad=True)
    expected = functional.cross_entropy(x, torch.from_numpy(labels), label_smoothing=smoothing)
    expected.backward()
    assert x.grad is not None
    errors = [
        relative(found.asnumpy(), expected.detach().numpy()),
        relative(grad.asnumpy(), x.grad.numpy()),
    ]
    record(f"cross-entropy, smoothing {smoothing:g}: value, gradient", *errors)
    assert max(errors) <= TOLERANCE
