"""Running average of the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multigrain.optim.thor.capture import CapturedLayer
from multigrain.optim.thor.factors import Factors


class FactorAverage:
    """Weighted mean of a layer's factors over its refreshes, the k-th last weighing ``decay^k``.

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

    def add(self, layer: int, factors: Factors) -> Factors:
        """Takes factors in and returns the mean; those that are not finite change nothing.

        Returns:
            The mean, or the given factors where they are not finite.
        """
        if not (np.isfinite(factors.a).all() and np.isfinite(factors.g).all()):
            return factors
        old = self._means[layer]
        weight = self._decay * self._weights[layer]
        share = np.float32(1.0 / (weight + 1.0))
        mean = Factors(old.a + share * (factors.a - old.a), old.g + share * (factors.g - old.g))
        self._means[layer] = mean
        self._weights[layer] = weight + 1.0
        return mean

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
