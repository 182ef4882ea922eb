"""The curvature of a whole network: capture, refresh, inverses, and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor, nn

from multigrain.model.parameters import assign
from multigrain.optim.non_finite import NonFinite, first_non_finite_factor
from multigrain.optim.reduce import Reducer, host_mean
from multigrain.optim.thor.blocks import (
    KroneckerFactors,
    pack_symmetric,
    split_damping,
    unpack_symmetric,
)
from multigrain.optim.thor.capture import (
    CapturedLayer,
    attach_taps,
    curvature_table,
    excluded_layers,
)
from multigrain.optim.thor.inverse import Inversion, sharded_inverses
from multigrain.optim.thor.preconditioner import LayerPreconditioner
from multigrain.optim.thor.refresh import FixedRule, TraceRule
from multigrain.specs.training import ThorSpec


class FactorAverage:
    """Exponential moving average of the factors over the refresh checks.

    The sum of the weights is kept beside the mean, so that the first value is exact and the mean
    is not biased toward an initial value (as in kfac-jax)::

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
            KroneckerFactors(np.zeros(x.a.shape, np.float32), np.zeros(x.g.shape, np.float32))
            for x in layers
        ]

    def means(self, factors: Mapping[int, KroneckerFactors]) -> dict[int, KroneckerFactors]:
        """Returns the means of these layers updated with new factors; keeps the state as it is."""
        means = {}
        for layer, new in factors.items():
            old = self._means[layer]
            rate = np.float32(1.0 / (self._decay * self._weights[layer] + 1.0))
            means[layer] = KroneckerFactors(
                old.a + rate * (new.a - old.a), old.g + rate * (new.g - old.g)
            )
        return means

    def accept(self, means: Mapping[int, KroneckerFactors]) -> None:
        """Takes the result of :meth:`means` as the new state."""
        for layer, mean in means.items():
            self._means[layer] = mean
            self._weights[layer] = self._decay * self._weights[layer] + 1.0

    def state(self) -> dict[str, np.ndarray]:
        """Returns copies of the means and weights."""
        state = {"weights": self._weights.copy()}
        for name, mean in zip(self._names, self._means, strict=True):
            state[f"{name}.a"] = mean.a.copy()
            state[f"{name}.g"] = mean.g.copy()
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what :meth:`state` returned."""
        self._weights = np.array(state["weights"], np.float64)
        self._means = [
            KroneckerFactors(np.array(state[f"{name}.a"]), np.array(state[f"{name}.g"]))
            for name in self._names
        ]


@dataclass(frozen=True)
class RefreshResult:
    """Result of a refresh check.

    Attributes:
        refreshed: number of layers with new inverses.
        kept: number of checked layers that keep their inverses.
        problem: what was non-finite; then no layer was changed.
    """

    refreshed: int = 0
    kept: int = 0
    problem: NonFinite | None = None


class Curvature:
    """Taps, factors and preconditioners of all preconditioned layers of a network.

    Args:
        net: the network; taps are attached to it.
        spec: THOR's options.
        steps_per_epoch: the trace rule's longest interval, if the options give none.
        reducer: collectives over the workers.

    Raises:
        MultigrainError: UNSUPPORTED, for a network with grouped convolutions.
    """

    def __init__(
        self,
        net: nn.Cell,
        spec: ThorSpec,
        *,
        steps_per_epoch: int,
        reducer: Reducer,
    ) -> None:
        self._reducer = reducer
        self.layers: list[CapturedLayer] = attach_taps(
            net, block_size=spec.block_size, world=reducer.world
        )
        self._names = [x.name for x in self.layers]
        self._of_weight = {x.weight.name: x.preconditioner for x in self.layers}
        self._excluded = excluded_layers(net)
        self._pi_correction = spec.pi_correction
        self._rule = _rule(spec, self.layers, steps_per_epoch)
        self._average: FactorAverage | None = None
        if spec.factor_average > 0:
            self._average = FactorAverage(self.layers, spec.factor_average)

    @property
    def inverses(self) -> list[Parameter]:
        """The stored inverses: all of A, then all of G. The factors are their "gradients"."""
        cells = [x.preconditioner for x in self.layers]
        return [x.a_inverse for x in cells] + [x.g_inverse for x in cells]

    @property
    def stopped(self) -> int:
        """Number of layers that will never be refreshed again."""
        return self._rule.stopped

    def preconditioner(self, weight: Parameter) -> LayerPreconditioner | None:
        """Returns the preconditioner of a weight; None if it is not preconditioned."""
        return self._of_weight.get(weight.name)

    def tap(self, on: bool) -> None:
        """Switches the taps on or off for graphs compiled from now on."""
        for layer in self.layers:
            layer.cell.tapped = on

    def due(self, step: int) -> bool:
        """Returns whether :meth:`refresh` is due in step ``step``, counted from 0."""
        return self._rule.due(step)

    def refresh(
        self, tensors: list[Tensor], traces: np.ndarray, damping: float, step: int
    ) -> RefreshResult:
        """Checks all layers that are not stopped and refreshes those that the rule selects.

        Collective; the result is the same on every worker. Only the factors of the selected
        layers (with a running average: of all layers that are not stopped) are copied from the
        device and exchanged between the workers.

        All selected layers are refreshed, or none if anything is non-finite.

        Args:
            tensors: this worker's own factors, in the order of ``inverses``. The list is emptied,
                so that a layer's memory is free before the next one is inverted.
            traces: (2, L), the factors' traces, means over the workers.
            damping: lambda.
            step: index of the step, from 0.
        """
        problem = first_non_finite_factor(self._names, traces)
        if problem is not None:
            return RefreshResult(problem=problem)
        own = dict(enumerate(tensors))
        tensors.clear()
        active, before = self._rule.active, self._rule.state()
        means: dict[int, KroneckerFactors] = {}
        fisher = traces[0] * traces[1]
        if self._average:
            means = self._average.means(self._reduced(own, active))
            for layer, mean in means.items():
                fisher[layer] = mean.trace
        chosen = self._rule.check(step, [float(fisher[layer]) for layer in active], damping)
        inverses = self._inverses(own, chosen, means, damping)
        for layer in chosen:
            if layer not in inverses:
                self._rule.load_state(before)
                return RefreshResult(problem=NonFinite("inverse", self._names[layer]))
        if self._average:
            self._average.accept(means)
        for layer, inverse in inverses.items():
            cell = self.layers[layer].preconditioner
            assign(cell.a_inverse, inverse.a)
            assign(cell.g_inverse, inverse.g)
            self._rule.accept(layer)
        return RefreshResult(len(chosen), len(active) - len(chosen))

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state besides ``inverses`` to save in a checkpoint; empty for plain THOR."""
        state = {f"curvature_rule.{key}": value for key, value in self._rule.state().items()}
        if self._average:
            for key, value in self._average.state().items():
                state[f"curvature_average.{key}"] = value
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what :meth:`state` returned."""
        self._rule.load_state(_strip_prefix(state, "curvature_rule."))
        if self._average:
            self._average.load_state(_strip_prefix(state, "curvature_average."))

    def table(self) -> str:
        """Returns a summary table of the preconditioned and the excluded layers."""
        return curvature_table(self.layers, self._excluded)

    def _inverses(
        self,
        own: dict[int, Tensor],
        chosen: Sequence[int],
        means: Mapping[int, KroneckerFactors],
        damping: float,
    ) -> dict[int, KroneckerFactors]:
        """Returns the damped inverses of the chosen layers, without non-finite ones."""
        if self._reducer.world > 1:
            found = {layer: means[layer] for layer in chosen if layer in means}
            return self._inverted(found or self._reduced(own, chosen), damping)
        inverses: dict[int, KroneckerFactors] = {}
        for layer in chosen:  # one after the other, to free each layer's factors
            factors = means[layer] if layer in means else self._own(own, layer)
            inverses |= self._inverted({layer: factors}, damping)
        return inverses

    def _own(self, own: dict[int, Tensor], layer: int) -> KroneckerFactors:
        """Removes and returns this worker's factors of a layer."""
        return KroneckerFactors(
            own.pop(layer).asnumpy(), own.pop(len(self.layers) + layer).asnumpy()
        )

    def _reduced(
        self, own: dict[int, Tensor], layers: Sequence[int]
    ) -> dict[int, KroneckerFactors]:
        """Returns the layers' factors averaged over the workers, exchanged as packed triangles."""
        factors = {layer: self._own(own, layer) for layer in layers}
        if self._reducer.world == 1:
            return factors
        flat = [pack_symmetric(f.a) for f in factors.values()] + [
            pack_symmetric(f.g) for f in factors.values()
        ]
        means = host_mean(self._reducer, flat)
        return {
            layer: KroneckerFactors(
                unpack_symmetric(means[index], self.layers[layer].a.size),
                unpack_symmetric(means[len(factors) + index], self.layers[layer].g.size),
            )
            for index, layer in enumerate(factors)
        }

    def _inverted(
        self, factors: Mapping[int, KroneckerFactors], damping: float
    ) -> dict[int, KroneckerFactors]:
        jobs = []
        for layer, found in factors.items():
            x = self.layers[layer]
            on_a, on_g = split_damping(
                found, (x.a.dim, x.g.dim), damping, pi_correction=self._pi_correction
            )
            jobs += [Inversion(found.a, on_a, x.a), Inversion(found.g, on_g, x.g)]
        inverses = sharded_inverses(jobs, self._reducer)
        pairs = zip(factors, inverses[::2], inverses[1::2], strict=True)
        return {
            layer: KroneckerFactors(a, g)
            for layer, a, g in pairs
            if a is not None and g is not None
        }


def _rule(
    spec: ThorSpec, layers: Sequence[CapturedLayer], steps_per_epoch: int
) -> FixedRule | TraceRule:
    if spec.refresh == "fixed":
        return FixedRule(len(layers), spec.frequency, spec.early_refreshes)
    return TraceRule(
        [x.a.dim * x.g.dim for x in layers],
        w1=spec.w1,
        w2=spec.w2,
        frequency=spec.frequency,
        growth=spec.frequency_growth,
        largest=spec.frequency_max or max(steps_per_epoch, spec.frequency),
        early=spec.early_refreshes,
    )


def _strip_prefix(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
