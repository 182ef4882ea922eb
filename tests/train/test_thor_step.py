"""A whole THOR step against NumPy, from images and weights to the preconditioned gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import block_diag

from multigrain.model.state import model_state
from tests.train.tiny import batch, tiny_spec, tiny_step

pytestmark = pytest.mark.mindspore

BLOCK = 16
DECAY = 1e-3  # of tiny_spec


def patches(x: np.ndarray, stride: int) -> np.ndarray:
    """(N, I, H, W) -> (N, T, I * 9) of a 3x3 convolution with padding 1."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = ((side - 1) // stride + 1 for side in x.shape[2:])
    cut = [
        padded[:, :, stride * r : stride * r + 3, stride * c : stride * c + 3].reshape(len(x), -1)
        for r in range(rows)
        for c in range(columns)
    ]
    return np.stack(cut, 1)


def solve(a: np.ndarray, s: np.ndarray, damping: float, pi_correction: bool) -> np.ndarray:
    """Computes P(g) by a dense solve; a (N, T, I) inputs, s (N, T, O) per-example derivatives."""
    n, t, i = a.shape
    o = s.shape[2]
    gradient = np.einsum("nto,nti->oi", s, a) / n
    inputs = np.einsum("nti,ntj->ij", a, a) / (n * t)
    outputs = np.einsum("nto,ntp->op", s, s) / (n * t)
    for factor in (inputs, outputs):
        ones = [np.ones((min(BLOCK, len(factor) - k),) * 2) for k in range(0, len(factor), BLOCK)]
        factor *= block_diag(*ones)
    # T (G + sqrt(lambda / T)) (x) (A + sqrt(lambda / T)), row-major.
    root, pi = np.sqrt(damping / t), 1.0
    if pi_correction:
        pi = np.sqrt((np.trace(inputs) / i) / (np.trace(outputs) / o))
    fisher = t * np.kron(outputs + root / pi * np.eye(o), inputs + root * pi * np.eye(i))
    return np.linalg.solve(fisher, gradient.ravel()).reshape(o, i)


def fisher_trace(a: np.ndarray, s: np.ndarray) -> float:
    """T tr(A) tr(G), from two sums of squares."""
    n, t, _ = a.shape
    return float(t * ((a**2).sum() / (n * t)) * ((s**2).sum() / (n * t)))


@pytest.mark.parametrize(
    ("scale", "options"),
    [(1.0, {}), (1024.0, {"refresh": "trace"}), (1.0, {"pi_correction": True})],
    ids=["plain", "scaled", "pi"],
)
def test_the_first_update_is_the_dense_solve_of_the_damped_kronecker_factors(
    scale: float, options: dict[str, Any]
) -> None:
    spec = tiny_spec(instance_loss="none", block_size=BLOCK, loss_scale=scale, **options)
    step = tiny_step(spec)
    pi = spec.optimizer.thor.pi_correction
    start = {name: v.astype(np.float64) for name, v in model_state(step._model).items()}
    x, labels, ids = batch(0)
    result = step(x, labels, ids)
    n, root = len(x), step.state()

    first = patches(x.astype(np.float64), 2)
    y = first @ start["trunk.conv1.weight"].reshape(5, -1).T  # (N, T, 5)
    y = (y - y.mean((0, 1))) / np.sqrt(y.var((0, 1)) + 1e-5)
    y = np.maximum(y, 0).transpose(0, 2, 1).reshape(n, 5, 4, 4)
    inner = patches(y, 1)
    z = inner @ start["trunk.conv2.weight"].reshape(6, -1).T  # (N, T, 6)
    kept = np.maximum(z, 1e-6)
    embedding = (kept**3).mean(1) ** (1 / 3)
    weight = start["classifier.weight"]
    logits = embedding @ weight.T + start["classifier.bias"]
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    loss = -np.log(chance[np.arange(n), labels]).mean()
    assert result.loss == pytest.approx(loss, rel=1e-5)

    d_logits = chance - np.eye(3)[labels]
    d_embedding = d_logits @ weight
    d_z = d_embedding[:, None] * (kept / embedding[:, None]) ** 2 / z.shape[1] * (z > 1e-6)
    for name, expected in (
        ("classifier.weight", solve(embedding[:, None], d_logits[:, None], result.damping, pi)),
        ("trunk.conv2.weight", solve(inner, d_z, result.damping, pi)),
    ):
        found = root[f"momentum.{name}"] - DECAY * start[name]
        np.testing.assert_allclose(
            found.reshape(expected.shape), expected, rtol=2e-3, atol=2e-4, err_msg=name
        )
    if spec.optimizer.thor.refresh == "trace":
        layers = [x.name for x in step._curvature.layers]
        accepted = dict(zip(layers, root["curvature_rule.accepted"], strict=True))
        assert accepted["trunk.conv2"] == pytest.approx(fisher_trace(inner, d_z), rel=1e-4)
        classifier = fisher_trace(embedding[:, None], d_logits[:, None])
        assert accepted["classifier"] == pytest.approx(classifier, rel=1e-4)
