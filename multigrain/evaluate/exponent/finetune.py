"""Training p alone."""

from __future__ import annotations

from collections.abc import Callable

import mindspore
import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from multigrain.evaluate.exponent.cells import ExponentLoss

BATCH = 4
MOMENTUM = 0.9
POWER = 0.9


def learning_rate(first: float, step: int, steps: int) -> float:
    """``first * (1 - step / steps)^0.9``, step from 0: the published fine-tuning's decay."""
    return first * (1 - step / steps) ** POWER


class ExponentTuner:
    """SGD with momentum on p alone: ``v = 0.9 v + dL/dp``, ``p = max(1, p - rate * v)``.

    The classifier and the trunk stay as they are, and BatchNorm uses its stored statistics.

    Args:
        classifier: embedding -> logits.
        start: the first p, finite.
        rate: learning rate of the first step.
        steps: that will come; the rate falls towards 0 over them.
    """

    def __init__(self, classifier: nn.Cell, start: float, *, rate: float, steps: int) -> None:
        self._loss = ExponentLoss(classifier, start)
        self._loss.set_train(False)
        gradient = mindspore.value_and_grad(self._loss, None, weights=self._loss.pool.p)
        # Compiled: a step of so few numbers is all overhead otherwise (measured: 30 times slower).
        self._gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = mindspore.jit(gradient)
        self._rate, self._steps, self._step = rate, steps, 0
        self._velocity = 0.0
        self._p = float(start)

    @property
    def p(self) -> float:
        """The exponent in use."""
        return self._p

    def step(self, maps: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
        """One step on the trunk's maps (n, C, H, W) of some images; the loss before it.

        A gradient that is not finite changes nothing.
        """
        loss, gradient = self._gradient(Tensor(maps), Tensor(labels))
        slope = float(gradient.asnumpy())
        if np.isfinite(slope):
            self._velocity = MOMENTUM * self._velocity + slope
            rate = learning_rate(self._rate, self._step, self._steps)
            # float64 here; the network's p is float32.
            self._p = max(1.0, self._p - rate * self._velocity)
            self._loss.pool.set_exponent(self._p)
        self._step += 1
        return float(loss.asnumpy())
