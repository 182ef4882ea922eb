"""Running average of the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor, nn

from multigrain.model.parameters import assign
from multigrain.optim.non_finite import NonFinite, first_non_finite_factor
from multigrain.optim.reduce import Reducer, host_mean
from multigrain.optim.thor.blocks import Factors, pack, split_damping, unpack
from multigrain.optim.thor.capture import CapturedLayer, attach, curvature_table, excluded
from multigrain.optim.thor.inverse import Inversion, sharded_inverses
from multigrain.optim.thor.preconditioner import LayerPreconditioner
from multigrain.optim.thor.refresh import FixedRule, TraceRule
from multigrain.specs.training import ThorSpec


class FactorAverage:
    """Weighted mean of a layer's factors over the checks, the k-th last weighing ``decay^k``.

    The sum of the weights is kept beside the mean, so that the first value is exact and nothing
    is biased toward a start value (as in kfac-jax)::

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


# MERGED: The curvature of a whole network: capture, refresh, and its state.


@dataclass(frozen=True)
class RefreshResult:
    """What a check did.

    Attributes:
        refreshed: layers whose curvature was renewed.
        kept: layers that were left as they were.
        problem: what was not finite; nothing was changed then, in any layer.
    """

    refreshed: int = 0
    kept: int = 0
    problem: NonFinite | None = None


class Curvature:
    """Taps and preconditioners of every captured layer.

    Args:
        net: the network; taps are attached to it.
        spec: THOR's options.
        steps_per_epoch: the trace rule's longest interval, where none is given.
        reducer: sums over the workers.

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
        self.layers: list[CapturedLayer] = attach(
            net, block_size=spec.block_size, world=reducer.world
        )
        self._names = [x.name for x in self.layers]
        self._of_weight = {x.weight.name: x.preconditioner for x in self.layers}
        self._excluded = excluded(net)
        self._pi_correction = spec.pi_correction
        self._rule = _rule(spec, self.layers, steps_per_epoch)
        self._average: FactorAverage | None = None
        if spec.factor_average > 0:
            self._average = FactorAverage(self.layers, spec.factor_average)

    @property
    def inverses(self) -> list[Parameter]:
        """The stored inverses, all A, then all G. The factors are their "gradients"."""
        cells = [x.preconditioner for x in self.layers]
        return [x.a_inverse for x in cells] + [x.g_inverse for x in cells]

    @property
    def stopped(self) -> int:
        """Number of layers whose curvature is never renewed again."""
        return self._rule.stopped

    def preconditioner(self, weight: Parameter) -> LayerPreconditioner | None:
        """That weight's preconditioner; None for what keeps its plain gradient."""
        return self._of_weight.get(weight.name)

    def tap(self, on: bool) -> None:
        """Whether a graph that is compiled from now on has the taps; existing ones stay."""
        for layer in self.layers:
            layer.cell.tapped = on

    def due(self, step: int) -> bool:
        """Whether :meth:`refresh` is due in step ``step``, counted from 0."""
        return self._rule.due(step)

    def refresh(
        self, tensors: list[Tensor], traces: np.ndarray, damping: float, step: int
    ) -> RefreshResult:
        """Checks every layer that is not stopped, and renews the curvature of those that need it.

        Only what is needed leaves the device and travels between the workers: the factors of
        the layers that the traces chose (with a running average of the factors, those of every
        layer that is not stopped).

        Either every chosen layer is renewed, or nothing is changed at all because something is
        not finite; every worker comes to the same result.

        Args:
            tensors: this worker's own factors, in the order of ``inverses``. Emptied, so that
                a layer's memory is free before the next one is inverted.
            traces: (2, L) their traces, means over the workers.
            damping: lambda.
            step: index of the step, from 0.
        """
        problem = first_non_finite_factor(self._names, traces)
        if problem is not None:
            return RefreshResult(problem=problem)
        own = dict(enumerate(tensors))
        tensors.clear()
        active, before = self._rule.active, self._rule.state()
        means: dict[int, Factors] = {}
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
        """What later refreshes depend on besides ``inverses``; empty for plain THOR."""
        state = {f"curvature_rule.{key}": value for key, value in self._rule.state().items()}
        if self._average:
            for key, value in self._average.state().items():
                state[f"curvature_average.{key}"] = value
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from :meth:`state`."""
        self._rule.load_state(_below(state, "curvature_rule."))
        if self._average:
            self._average.load_state(_below(state, "curvature_average."))

    def table(self) -> str:
        """Every captured layer, and every other one with the reason why it is left out."""
        return curvature_table(self.layers, self._excluded)

    def _inverses(
        self,
        own: dict[int, Tensor],
        chosen: Sequence[int],
        means: Mapping[int, Factors],
        damping: float,
    ) -> dict[int, Factors]:
        """The damped inverses of the chosen layers, without those that are not finite."""
        if self._reducer.world > 1:
            found = {layer: means[layer] for layer in chosen if layer in means}
            return self._inverted(found or self._reduced(own, chosen), damping)
        inverses: dict[int, Factors] = {}
        for layer in chosen:  # one after the other: a layer's factors leave the memory
            factors = means[layer] if layer in means else self._own(own, layer)
            inverses |= self._inverted({layer: factors}, damping)
        return inverses

    def _own(self, own: dict[int, Tensor], layer: int) -> Factors:
        """This worker's factors of a layer, taken out."""
        return Factors(own.pop(layer).asnumpy(), own.pop(len(self.layers) + layer).asnumpy())

    def _reduced(self, own: dict[int, Tensor], layers: Sequence[int]) -> dict[int, Factors]:
        """The means over the workers; only upper triangles travel."""
        factors = {layer: self._own(own, layer) for layer in layers}
        if self._reducer.world == 1:
            return factors
        flat = [pack(f.a) for f in factors.values()] + [pack(f.g) for f in factors.values()]
        means = host_mean(self._reducer, flat)
        return {
            layer: Factors(
                unpack(means[index], self.layers[layer].a.size),
                unpack(means[len(factors) + index], self.layers[layer].g.size),
            )
            for index, layer in enumerate(factors)
        }

    def _inverted(self, factors: Mapping[int, Factors], damping: float) -> dict[int, Factors]:
        jobs = []
        for layer, found in factors.items():
            x = self.layers[layer]
            on_a, on_g = split_damping(
                found, (x.a.dim, x.g.dim), damping, pi_correction=self._pi_correction
            )
            jobs += [Inversion(found.a, on_a, x.a), Inversion(found.g, on_g, x.g)]
        inverses = sharded_inverses(jobs, self._reducer)
        pairs = zip(factors, inverses[::2], inverses[1::2], strict=True)
        return {layer: Factors(a, g) for layer, a, g in pairs if a is not None and g is not None}


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


def _below(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
