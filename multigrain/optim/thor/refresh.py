"""Refresh of every layer at a fixed frequency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum

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


# MERGED: THOR's rule of when a layer's curvature is renewed, kept, or kept for good.


class Decision(Enum):
    """What becomes of a layer at a check."""

    UPDATE = "update"
    KEEP = "keep"
    STOP = "stop"  # keep, now and at every later check


def relative_change(trace: float, accepted: float, damped: float) -> float:
    """Delta: relative change of tr(F + lambda I) since F was last accepted.

    With F = T (A (x) G): ``tr(F + lambda I) = T tr(A) tr(G) + lambda dim(A) dim(G)``. The
    present lambda is taken for both, so that a decay of the damping alone changes nothing.

    Args:
        trace: T tr(A) tr(G) now.
        accepted: the same of the last accepted F.
        damped: lambda dim(A) dim(G), > 0.
    """
    return abs(trace - accepted) / (accepted + damped)


def decide(change: float, w1: float, w2: float) -> Decision:
    """``change > w1``: update; ``change < w2``: stop; else keep, also where it is not a number."""
    if change > w1:
        return Decision.UPDATE
    return Decision.STOP if change < w2 else Decision.KEEP


class TraceRule:
    """The trace rule of the THOR paper for every layer, at checks that grow rarer.

    The first check is at the first step and updates every layer. Check number n (from 1) is
    followed by the next one after ``min(frequency * growth ** (n - 1), largest)`` steps. The
    paper says that the interval grows (to one update an epoch), not how; this is our choice.

    ``early`` checks come on top and change no interval.

    A stopped layer is never checked again. Every worker must be given the same traces.

    Args:
        sizes: dim(A) * dim(G) of each layer.
        w1, w2: bounds of Delta, ``w2 <= w1``. Published: (0.01, 0); (0.01, 0.001) as
            THOR_stop; (0, 0) as THOR_NT, which renews whatever has changed at all.
        frequency: steps from the first check to the second.
        growth: at least 1.
        largest: longest interval in steps.
        early: steps of further checks.
    """

    reads_traces = True

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
        """The layers that are not stopped."""
        return [int(layer) for layer in np.flatnonzero(self._stopped == 0)]

    @property
    def stopped(self) -> int:
        """Number of layers that are stopped."""
        return int(self._stopped.sum())

    def due(self, step: int) -> bool:
        """Whether step ``step``, counted from 0, is a check; never once all layers are stopped.

        A check whose step was skipped stays due.
        """
        return (step >= self._next or step in self._early) and self.stopped < len(self._sizes)

    def check(self, step: int, traces: Sequence[float], damping: float) -> list[int]:
        """The layers whose curvature is to be renewed; stops what changes too little.

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
        """Says that the layer's curvature was renewed from the F of the latest check."""
        self._accepted[layer] = self._seen[layer]

    def state(self) -> dict[str, np.ndarray]:
        """What later decisions depend on; copies."""
        return {
            "accepted": self._accepted.copy(),
            "stopped": self._stopped.copy(),
            "checks": np.asarray(self._checks, np.int64),
            "next": np.asarray(self._next, np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from :meth:`state`."""
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
