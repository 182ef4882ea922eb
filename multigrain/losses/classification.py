"""Softmax cross-entropy with label smoothing."""

from __future__ import annotations

import mindspore
from mindspore import Tensor, nn, ops


class SmoothedCrossEntropy(nn.Cell):
    """Mean over the batch of cross-entropy against smoothed labels.

    With K classes the target has probability 1 - eps + eps/K and every other class eps/K (the
    convention of PyTorch and of ``ops.cross_entropy``; the ModelZoo's 1 - eps and eps/(K-1) is
    the same with another eps). (N, K) logits and (N,) int32 labels -> scalar float32.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = ops.log_softmax(ops.cast(logits, mindspore.float32), 1)
        n, classes = log_p.shape
        target = ops.one_hot(
            labels, classes, Tensor(1.0, mindspore.float32), Tensor(0.0, mindspore.float32)
        )
        target = target * (1.0 - self.smoothing) + self.smoothing / classes
        return -ops.ReduceSum()(target * log_p) / n
