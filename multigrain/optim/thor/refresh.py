"""Refresh rules: at which steps which layers' curvature is refreshed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np


class FixedRule:
    """Refreshes every layer every ``frequency`` steps, from the first step on; has no state.

    Args:
        layers: number of layers.
        frequency: steps between two refreshes.
        early: indices of steps with additional refreshes.
    """

    stopped = 0

    def __init__(self, layers: int, frequency: int, early: Sequence[int] = ()) -> None:
        self.active = list(range(layers))
        self._frequency = frequency
        self._early = frozenset(early)

    def due(self, step: int) -> bool:
        """Returns whether step ``step``, counted from 0, has a refresh."""
        return step % self._frequency == 0 or step in self._early

    def check(self, step: int, traces: Sequence[float], damping: float) -> list[int]:
        """Returns the layers to refresh: all."""
        return self.active

    def accept(self, layer: int) -> None:
        """Does nothing: the rule does not depend on earlier refreshes."""

    def state(self) -> dict[str, np.ndarray]:
        """Returns an empty state."""
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Does nothing."""


class Decision(Enum):
    """What a check decides for a layer."""

    UPDATE = "update"
    KEEP = "keep"
    STOP = "stop"  # keep, now and at every later check


def relative_change(trace: float, accepted: float, damped: float) -> float:
    """Returns Delta, the relative change of tr(F + lambda I) since F was last accepted.

    With F = T (A (x) G): ``tr(F + lambda I) = T tr(A) tr(G) + lambda dim(A) dim(G)``. The
    present lambda is used for both traces, so that decaying damping alone is no change.

    Args:
        trace: T tr(A) tr(G) now.
        accepted: T tr(A) tr(G) of the last accepted F.
        damped: lambda dim(A) dim(G), > 0.
    """
    return abs(trace - accepted) / (accepted + damped)


def decide(change: float, w1: float, w2: float) -> Decision:
    """Returns UPDATE if ``change > w1``, STOP if ``change < w2``, else KEEP (also for NaN)."""
    if change > w1:
        return Decision.UPDATE
    return Decision.STOP if change < w2 else Decision.KEEP


class TraceRule:
    """The trace rule of the THOR paper, with checks at growing intervals.

    The first check is at the first step and updates every layer. Check number n (from 1) is
    followed by the next one after ``min(frequency * growth ** (n - 1), largest)`` steps. The
    paper says that the interval grows (to one update per epoch), but not how; the geometric
    growth is our choice.

    ``early`` checks are additional and do not change the intervals.

    A stopped layer is never checked again. Every worker must give the same traces.

    Args:
        sizes: dim(A) * dim(G) of each layer.
        w1, w2: thresholds of Delta, ``w2 <= w1``. Published: (0.01, 0); (0.01, 0.001) as
            THOR_stop; (0, 0) as THOR_NT, which updates every layer that has changed at all.
        frequency: steps from the first check to the second.
        growth: growth factor of the interval, at least 1.
        largest: longest interval in steps.
        early: indices of steps with additional checks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        w1: float,
        w2: float,
        frequency: int,
        growth: float,
        largest: int,
        early: Sequence[int] = (),
    ) -> None:
        self._sizes = tuple(sizes)
        self._w1, self._w2 = w1, w2
        self._frequency, self._growth, self._largest = frequency, growth, largest
        self._early = frozenset(early)
        self._accepted = np.full(len(sizes), np.nan)  # NaN: no F was accepted yet
        self._seen = np.full(len(sizes), np.nan)
        self._stopped = np.zeros(len(sizes), np.int64)
        self._checks = 0
        self._next = 0

    @property
    def active(self) -> list[int]:
        """Indices of the layers that are not stopped."""
        return [int(layer) for layer in np.flatnonzero(self._stopped == 0)]

    @property
    def stopped(self) -> int:
        """Number of stopped layers."""
        return int(self._stopped.sum())

    def due(self, step: int) -> bool:
        """Returns whether step ``step``, counted from 0, has a check.

        A check whose step was skipped stays due. There are none once all layers are stopped.
        """
        return (step >= self._next or step in self._early) and self.stopped < len(self._sizes)

    def check(self, step: int, traces: Sequence[float], damping: float) -> list[int]:
        """Returns the layers to refresh, and stops those that change too little.

        Args:
            step: index of this step.
            traces: T tr(A) tr(G) of each layer of :attr:`active`, in that order.
            damping: lambda.
        """
        chosen = []
        for layer, trace in zip(self.active, traces, strict=True):
            self._seen[layer] = trace
            accepted = float(self._accepted[layer])
            if math.isnan(accepted):
                chosen.append(layer)
                continue
            change = relative_change(trace, accepted, damping * self._sizes[layer])
            decision = decide(change, self._w1, self._w2)
            if decision is Decision.UPDATE:
                chosen.append(layer)
            elif decision is Decision.STOP:
                self._stopped[layer] = 1
        if step >= self._next:
            self._next = step + self._interval(self._checks)
            self._checks += 1
        return chosen

    def accept(self, layer: int) -> None:
        """Records that the layer was refreshed with the F of the latest check."""
        self._accepted[layer] = self._seen[layer]

    def state(self) -> dict[str, np.ndarray]:
        """Returns copies of the state to save in a checkpoint."""
        return {
            "accepted": self._accepted.copy(),
            "stopped": self._stopped.copy(),
            "checks": np.asarray(self._checks, np.int64),
            "next": np.asarray(self._next, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what :meth:`state` returned."""
        self._accepted = np.array(state["accepted"], np.float64)
        self._stopped = np.array(state["stopped"], np.int64)
        self._checks = int(state["checks"])
        self._next = int(state["next"])

    def _interval(self, checks: int) -> int:
        try:
            grown = self._frequency * self._growth**checks
        except OverflowError:
            return self._largest
        return int(min(grown, self._largest))
