"""Label smoothing against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.losses.objective import SmoothedCrossEntropy

pytestmark = pytest.mark.mindspore


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_against_smoothed_labels(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits = (5 * rng.standard_normal((6, 4))).astype(np.float32)
    labels = rng.integers(0, 4, 6).astype(np.int32)
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    expected = 0.0
    for i, label in enumerate(labels):
        for k in range(4):
            target = smoothing / 4 + (1 - smoothing if k == label else 0)
            expected -= target * log_p[i, k] / 6
    found = SmoothedCrossEntropy(smoothing)(Tensor(logits), Tensor(labels)).asnumpy()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_huge_logits_stay_finite() -> None:
    logits = Tensor(np.array([[1e30, -1e30, 0.0]], np.float32))
    loss = SmoothedCrossEntropy(0.1)(logits, Tensor(np.array([0], np.int32)))
    assert np.isfinite(loss.asnumpy())
