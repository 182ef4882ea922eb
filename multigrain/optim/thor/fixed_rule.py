"""Refresh of every layer at a fixed frequency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class FixedRule:
    """Every layer, every ``frequency`` steps, the first step included; has no state.

    Args:
        layers: number of layers.
        frequency: steps between two refreshes.
        early: steps of further ones.
    """

    reads_traces = False
    stopped = 0

    def __init__(self, layers: int, frequency: int, early: Sequence[int] = ()) -> None:
        self.active = list(range(layers))
        self._frequency = frequency
        self._early = frozenset(early)

    def due(self, step: int) -> bool:
        """Whether the curvature is looked at in step ``step``, counted from 0."""
        return step % self._frequency == 0 or step in self._early

    def check(self, step: int, traces: Sequence[float], damping: float) -> list[int]:
        """The layers to refresh: all."""
        return self.active

    def accept(self, layer: int) -> None:
        """Nothing depends on what was accepted."""

    def state(self) -> dict[str, np.ndarray]:
        """Nothing: what is due follows from the step."""
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Nothing to load."""
