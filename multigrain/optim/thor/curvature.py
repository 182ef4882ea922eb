"""The curvature of a whole network: capture, refresh, and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor, nn

from multigrain.model.assign import assign
from multigrain.optim.reduce import Reducer, host_mean
from multigrain.optim.thor.average import FactorAverage
from multigrain.optim.thor.capture import CapturedLayer, attach, excluded
from multigrain.optim.thor.factors import Factors, split_damping, trace
from multigrain.optim.thor.fixed_rule import FixedRule
from multigrain.optim.thor.inverse import damped_inverse
from multigrain.optim.thor.preconditioner import LayerPreconditioner
from multigrain.optim.thor.share import InverseShare
from multigrain.optim.thor.table import curvature_table
from multigrain.optim.thor.trace_rule import TraceRule
from multigrain.spec.training import ThorSpec


@dataclass(frozen=True)
class RefreshResult:
    """Layers whose curvature was renewed at a check, and those that it left as they were."""

    refreshed: int = 0
    kept: int = 0


class Curvature:
    """Taps and preconditioners of every captured layer.

    Args:
        net: the network; taps are attached to it.
        spec: THOR's options.
        loss_scale: factor on the differentiated loss.
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
        loss_scale: float,
        steps_per_epoch: int,
        reducer: Reducer,
    ) -> None:
        self._reducer = reducer
        self._share = InverseShare(reducer)
        self.layers: list[CapturedLayer] = attach(
            net, block_size=spec.block_size, loss_scale=loss_scale, world=self._share.world
        )
        self.preconditioners = [LayerPreconditioner(x.name, x.a, x.g) for x in self.layers]
        self._of_weight = {
            layer.weight.name: cell
            for layer, cell in zip(self.layers, self.preconditioners, strict=True)
        }
        self._excluded = excluded(net)
        self._pi_correction = spec.pi_correction
        self._rule = _rule(spec, self.layers, steps_per_epoch)
        self._average: FactorAverage | None = None
        if spec.factor_average > 0:
            self._average = FactorAverage(self.layers, spec.factor_average)

    @property
    def slots(self) -> list[Parameter]:
        """The parameters whose "gradients" are the factors: all A, then all G."""
        return [x.a_slot for x in self.layers] + [x.g_slot for x in self.layers]

    @property
    def inverses(self) -> list[Parameter]:
        """The stored inverses: all A, then all G."""
        return [p.a_inverse for p in self.preconditioners] + [
            p.g_inverse for p in self.preconditioners
        ]

    @property
    def stopped(self) -> int:
        """Number of layers whose curvature is never renewed again."""
        return self._rule.stopped

    def preconditioner(self, weight: Parameter) -> LayerPreconditioner | None:
        """That weight's preconditioner; None for what keeps its plain gradient."""
        return self._of_weight.get(weight.name)

    def due(self, step: int) -> bool:
        """Whether :meth:`refresh` is due in step ``step``, counted from 0."""
        return self._rule.due(step)

    def refresh(self, tensors: Sequence[Tensor], damping: float, step: int) -> RefreshResult:
        """Checks every layer that is not stopped, and renews the curvature of those that need it.

        Only what is needed travels between the workers: where the traces decide, they are
        averaged first, and then the factors of the chosen layers alone (with a running average
        of the factors, those of every layer that is not stopped).

        A layer whose factors or inverses are not finite keeps the inverses it has.

        Args:
            tensors: this worker's own factors, in the order of ``slots``.
            damping: lambda.
            step: index of the step, from 0.
        """
        active, count = self._rule.active, len(self.layers)
        factors = {
            layer: Factors(tensors[layer].asnumpy(), tensors[count + layer].asnumpy())
            for layer in active
        }
        if self._average:
            factors = {
                layer: self._average.add(layer, mean)
                for layer, mean in self._over_workers(factors).items()
            }
        chosen = self._rule.check(step, self._traces(factors), damping)
        factors = {layer: factors[layer] for layer in chosen}
        if not self._average:
            factors = self._over_workers(factors)
        refreshed = 0
        for layer, inverse in self._invert(factors, damping).items():
            assign(self.preconditioners[layer].a_inverse, inverse.a)
            assign(self.preconditioners[layer].g_inverse, inverse.g)
            self._rule.accept(layer)
            refreshed += 1
        return RefreshResult(refreshed, len(active) - refreshed)

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

    def _over_workers(self, factors: Mapping[int, Factors]) -> dict[int, Factors]:
        flat = [f.a for f in factors.values()] + [f.g for f in factors.values()]
        means = host_mean(self._reducer, flat)
        return {
            layer: Factors(means[index], means[len(factors) + index])
            for index, layer in enumerate(factors)
        }

    def _traces(self, factors: Mapping[int, Factors]) -> list[float]:
        """T tr(A) tr(G) of each layer, the same on every worker."""
        if not self._rule.reads_traces:
            return []
        if self._average:
            return [f.trace for f in factors.values()]
        # The mean of traces is the trace of the mean, so that no factor has to travel for it.
        own = np.array([(trace(f.a), trace(f.g)) for f in factors.values()], np.float32)
        (mean,) = host_mean(self._reducer, [own])
        return [float(a) * float(g) for a, g in mean.astype(np.float64)]

    def _invert(self, factors: Mapping[int, Factors], damping: float) -> dict[int, Factors]:
        """The damped inverses of the layers for which both are finite."""
        jobs = []
        for layer, found in factors.items():
            x = self.layers[layer]
            on_a, on_g = split_damping(
                found, (x.a.dim, x.g.dim), damping, pi_correction=self._pi_correction
            )
            jobs += [(found.a, on_a, x.a), (found.g, on_g, x.g)]
        inverses = [
            damped_inverse(*job) if self._share.mine(index) else None
            for index, job in enumerate(jobs)
        ]
        inverses = self._share.exchange(inverses, [layout.shape for _, _, layout in jobs])
        result = {}
        for index, layer in enumerate(factors):
            a, g = inverses[2 * index], inverses[2 * index + 1]
            if a is not None and g is not None:
                result[layer] = Factors(a, g)
        return result


def _rule(
    spec: ThorSpec, layers: Sequence[CapturedLayer], steps_per_epoch: int
) -> FixedRule | TraceRule:
    if spec.refresh == "fixed":
        return FixedRule(len(layers), spec.frequency)
    return TraceRule(
        [x.a.dim * x.g.dim for x in layers],
        w1=spec.w1,
        w2=spec.w2,
        frequency=spec.frequency,
        growth=spec.frequency_growth,
        largest=spec.frequency_max or max(steps_per_epoch, spec.frequency),
    )


def _below(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
