"""The parameter update: preconditioned gradient, weight decay, momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import mindspore
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from multigrain.model.assign import assign
from multigrain.optim.thor.preconditioner import LayerPreconditioner


class Group(Enum):
    """How a parameter is updated."""

    WEIGHTS = "weights"  # learning rate, momentum, weight decay
    EXPONENT = "exponent"  # GeM's p: no weight decay, never below 1
    BOUNDARY = "boundary"  # the margin loss's beta: its own rate, momentum 0.9, no weight decay


BOUNDARY_MOMENTUM = 0.9


@dataclass(frozen=True)
class Trained:
    """One trained parameter, its group, and the preconditioner of its gradient if it has one."""

    parameter: Parameter
    group: Group
    preconditioner: LayerPreconditioner | None = None


class Update(nn.Cell):
    """In place, for every parameter w with gradient g::

        g <- P(g)                    where a preconditioner is given
        g <- g + weight_decay * w    after preconditioning, as THOR does; BatchNorm and biases too
        m <- mu * m + g
        w <- w - lr * m

    The decay is therefore not preconditioned. It applies to every parameter of the network, as
    in THOR and in the MultiGrain recipe, except GeM's p and beta, for which shrinking towards 0
    has no meaning.

    ``statistics`` are BatchNorm's running values; they have been written by the forward pass
    already, and this remembers them as good (see :class:`Restore`).
    """

    def __init__(
        self,
        trained: Sequence[Trained],
        statistics: Sequence[Parameter],
        *,
        momentum: float,
        weight_decay: float,
        clipped: bool,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.count = len(trained)
        self.weights = ParameterTuple([t.parameter for t in trained])
        self.moments = ParameterTuple(
            [
                Parameter(
                    ops.zeros(t.parameter.shape, mindspore.float32),
                    name=f"momentum.{t.parameter.name}",
                    requires_grad=False,
                )
                for t in trained
            ]
        )
        cells = [t.preconditioner for t in trained if t.preconditioner is not None]
        self.preconditioners = nn.CellList(cells, auto_prefix=False)
        where = iter(range(len(cells)))
        self.place = tuple(-1 if t.preconditioner is None else next(where) for t in trained)
        self.decay = tuple(weight_decay if t.group is Group.WEIGHTS else 0.0 for t in trained)
        self.boundary = tuple(t.group is Group.BOUNDARY for t in trained)
        self.exponent = tuple(t.group is Group.EXPONENT for t in trained)
        self.momentum = momentum
        self.clipped = clipped
        self.apply_momentum = ops.ApplyMomentum()
        self.statistics = ParameterTuple(list(statistics))
        self.good = ParameterTuple(
            [
                Parameter(p.value().copy(), name=f"good.{p.name}", requires_grad=False)
                for p in statistics
            ]
        )

    def construct(
        self, rate: Tensor, boundary_rate: Tensor, clip: Tensor, *gradients: Tensor
    ) -> Tensor:
        """All three scalars are float32; ``clip`` multiplies every gradient where ``clipped``."""
        for i in range(self.count):
            weight = self.weights[i]
            g = gradients[i] * clip if self.clipped else gradients[i]
            if self.place[i] >= 0:
                g = self.preconditioners[self.place[i]](g)
            if self.decay[i] > 0:
                g = g + self.decay[i] * weight
            if self.boundary[i]:
                self.apply_momentum(weight, self.moments[i], boundary_rate, g, BOUNDARY_MOMENTUM)
            elif self.exponent[i]:
                m = self.momentum * self.moments[i] + g
                ops.assign(self.moments[i], m)
                ops.assign(weight, ops.maximum(weight - rate * m, Tensor(1.0, mindspore.float32)))
            else:
                self.apply_momentum(weight, self.moments[i], rate, g, self.momentum)
        for i in range(len(self.good)):
            ops.assign(self.good[i], self.statistics[i])
        return rate

    def restore_statistics(self) -> None:
        """Undoes what a skipped step's forward pass did to BatchNorm's running values."""
        for good, parameter in zip(self.good, self.statistics, strict=True):
            assign(parameter, good.asnumpy())

    def remember_statistics(self) -> None:
        """Takes the running values as they are now for good (after weights were loaded)."""
        for good, parameter in zip(self.good, self.statistics, strict=True):
            assign(good, parameter.asnumpy())
