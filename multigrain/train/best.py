"""Which checkpoint was best, by the metric that the specification names."""

from __future__ import annotations

import math
from dataclasses import dataclass

from multigrain.spec.evaluation import MetricName


@dataclass
class Best:
    """The best value so far; ``step`` is 0 while there is none."""

    metric: MetricName
    value: float = 0.0
    step: int = 0

    def improved(self, metrics: dict[str, float], step: int) -> bool:
        """Takes the figures of an evaluation at ``step``; True if they are the best so far.

        Every figure is better the higher it is, but the loss.

        A later equal value does not replace an earlier one, and what is no number is never best.
        """
        value = metrics[self.metric]
        if math.isnan(value):
            return False
        better = value < self.value if self.metric == "loss" else value > self.value
        if self.step and not better:
            return False
        self.value, self.step = value, step
        return True
