"""The factor on the loss that keeps small gradients of half precision from vanishing.

Pure Python: no MindSpore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from multigrain.specs.training import OptimizerSpec

# Where neither is asked for: the ModelZoo's, and nothing.
_HALF_PRECISION = 1024.0
_FULL_PRECISION = 1.0


class LossScale:
    """The loss scale S, and how it follows what overflows.

    A static scale never changes. A dynamic one is doubled after ``loss_scale_steps`` good steps
    in a row and halved by a step that overflows, between ``loss_scale_min`` and
    ``loss_scale_max`` (Micikevicius et al., arXiv 1710.03740). Doubling and halving a power of
    two is exact: with other gradients than those that under- or overflow, nothing changes.

    The loss is multiplied, and gradients and factors divided, in ``multigrain.train.gradients``
    and nowhere else.
    """

    def __init__(self, spec: OptimizerSpec, precision: Literal["fp32", "fp16"]) -> None:
        half = precision == "fp16"
        self.dynamic = spec.loss_scaling == "dynamic" or (half and spec.loss_scaling == "auto")
        self.value = spec.loss_scale or (_HALF_PRECISION if half else _FULL_PRECISION)
        self._steps = spec.loss_scale_steps
        self._least, self._most = spec.loss_scale_min, spec.loss_scale_max
        if self.dynamic:
            self.value = min(max(self.value, self._least), self._most)
        self._good = 0

    @property
    def active(self) -> bool:
        """Whether the loss is multiplied by anything, ever."""
        return self.dynamic or self.value != 1.0

    def good(self) -> None:
        """Takes note of a step that was taken."""
        self._good += 1
        if self.dynamic and self._good >= self._steps:
            self.value = min(2.0 * self.value, self._most)
            self._good = 0

    def overflowed(self) -> bool:
        """Takes note of a step that overflowed.

        Returns:
            Whether a smaller scale may help: False for a static one, and at the floor.
        """
        self._good = 0
        if not self.dynamic or self.value <= self._least:
            return False
        self.value = max(0.5 * self.value, self._least)
        return True

    def state(self) -> dict[str, np.ndarray]:
        """What later steps depend on; nothing for a static scale."""
        if not self.dynamic:
            return {}
        return {
            "loss_scale.value": np.asarray(self.value, np.float64),
            "loss_scale.good_steps": np.asarray(self._good, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from :meth:`state`."""
        if self.dynamic:
            self.value = float(state["loss_scale.value"])
            self._good = int(state["loss_scale.good_steps"])
