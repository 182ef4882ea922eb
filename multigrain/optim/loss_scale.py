"""Loss scaling: a factor on the loss that keeps small half-precision gradients from vanishing.

Does not import MindSpore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from multigrain.specs.training import OptimizerSpec

# Defaults: the ModelZoo's, and no scaling.
_HALF_PRECISION = 1024.0
_FULL_PRECISION = 1.0


class LossScale:
    """The loss scale S, static or dynamic.

    A static scale never changes. A dynamic one doubles after ``loss_scale_steps`` steps in a row
    without overflow and halves at an overflow, between ``loss_scale_min`` and ``loss_scale_max``
    (Micikevicius et al., arXiv 1710.03740). Multiplying by a power of two is exact, so only
    gradients that under- or overflow depend on the scale.

    The loss is scaled, and gradients and curvature factors unscaled, in
    ``multigrain.train.gradients`` and nowhere else.

    Args:
        spec: the options ``loss_scaling`` and ``loss_scale*``.
        precision: decides what "auto" means: dynamic in half precision, else none.
    """

    def __init__(self, spec: OptimizerSpec, precision: Literal["fp32", "fp16"]) -> None:
        half = precision == "fp16"
        self.dynamic = spec.loss_scaling == "dynamic" or (half and spec.loss_scaling == "auto")
        self.value = spec.loss_scale or (_HALF_PRECISION if half else _FULL_PRECISION)
        self._steps = spec.loss_scale_steps
        self._min, self._max = spec.loss_scale_min, spec.loss_scale_max
        if self.dynamic:
            self.value = min(max(self.value, self._min), self._max)
        self._good_steps = 0

    @property
    def active(self) -> bool:
        """Whether the loss is scaled at all."""
        return self.dynamic or self.value != 1.0

    def step_applied(self) -> None:
        """Records a step without overflow."""
        self._good_steps += 1
        if self.dynamic and self._good_steps >= self._steps:
            self.value = min(2.0 * self.value, self._max)
            self._good_steps = 0

    def step_overflowed(self) -> bool:
        """Records a step with an overflow.

        Returns:
            Whether the scale was reduced: False for a static one, and at the minimum.
        """
        self._good_steps = 0
        if not self.dynamic or self.value <= self._min:
            return False
        self.value = max(0.5 * self.value, self._min)
        return True

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state to save in a checkpoint; empty for a static scale."""
        if not self.dynamic:
            return {}
        return {
            "loss_scale.value": np.asarray(self.value, np.float64),
            "loss_scale.good_steps": np.asarray(self._good_steps, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what :meth:`state` returned."""
        if self.dynamic:
            self.value = float(state["loss_scale.value"])
            self._good_steps = int(state["loss_scale.good_steps"])
