"""Running average of the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multigrain.optim.thor.capture import CapturedLayer
from multigrain.optim.thor.factors import Factors


class FactorAverage:
    """Weighted mean of a layer's factors over the checks, the k-th last weighing ``decay^k``.

    The sum of the weights is kept beside the mean, so that the first value is exact and nothing
    is biased towards a start value (as in kfac-jax)::

        w <- decay * w;  mean <- (w * mean + x) / (w + 1);  w <- w + 1

    Args:
        layers: the network's layers.
        decay: weight of the past, in (0, 1).
    """

    def __init__(self, layers: Sequence[CapturedLayer], decay: float) -> None:
        self._names = [x.name for x in layers]
        self._decay = decay
        self._weights = np.zeros(len(layers))
        self._means = [
            Factors(np.zeros(x.a.shape, np.float32), np.zeros(x.g.shape, np.float32))
            for x in layers
        ]

    def means(self, factors: Mapping[int, Factors]) -> dict[int, Factors]:
        """The means of those layers with further factors taken in; remembers nothing."""
        means = {}
        for layer, new in factors.items():
            old = self._means[layer]
            share = np.float32(1.0 / (self._decay * self._weights[layer] + 1.0))
            means[layer] = Factors(old.a + share * (new.a - old.a), old.g + share * (new.g - old.g))
        return means

    def accept(self, means: Mapping[int, Factors]) -> None:
        """Goes on from what :meth:`means` gave."""
        for layer, mean in means.items():
            self._means[layer] = mean
            self._weights[layer] = self._decay * self._weights[layer] + 1.0

    def state(self) -> dict[str, np.ndarray]:
        """Means and weights; copies."""
        state = {"weights": self._weights.copy()}
        for name, mean in zip(self._names, self._means, strict=True):
            state[f"{name}.a"] = mean.a.copy()
            state[f"{name}.g"] = mean.g.copy()
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from :meth:`state`."""
        self._weights = np.array(state["weights"], np.float64)
        self._means = [
            Factors(np.array(state[f"{name}.a"]), np.array(state[f"{name}.g"]))
            for name in self._names
        ]
