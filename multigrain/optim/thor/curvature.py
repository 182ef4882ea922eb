"""The curvature of a whole network: capture, refresh, and its table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn

from multigrain.model.assign import assign
from multigrain.optim.thor.capture import CapturedLayer, attach
from multigrain.optim.thor.inverse import damped_inverse
from multigrain.optim.thor.preconditioner import LayerPreconditioner
from multigrain.optim.thor.share import InverseShare


class Curvature:
    """Taps and preconditioners of every captured layer.

    Args:
        net: the network; taps are attached to it.
        block_size: side of the diagonal blocks.
        loss_scale: factor on the differentiated loss.
        share: how the inversions are divided among the workers.
    """

    def __init__(
        self, net: nn.Cell, *, block_size: int, loss_scale: float, share: InverseShare
    ) -> None:
        self.layers: list[CapturedLayer] = attach(
            net, block_size=block_size, loss_scale=loss_scale, world=share.world
        )
        self.preconditioners = [LayerPreconditioner(x.name, x.a, x.g) for x in self.layers]
        self._of_weight = {
            layer.weight.name: cell
            for layer, cell in zip(self.layers, self.preconditioners, strict=True)
        }
        self._share = share
        self._excluded = [
            p.name for p in net.trainable_params()
            if p.name not in self._of_weight and not p.name.startswith("curvature.")
        ]  # fmt: skip

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

    def preconditioner(self, weight: Parameter) -> LayerPreconditioner | None:
        """That weight's preconditioner; None for what keeps its plain gradient."""
        return self._of_weight.get(weight.name)

    def refresh(self, factors: Sequence[Tensor], damping: float) -> int:
        """Inverts the factors (in the order of ``slots``, averaged over the workers already).

        A layer whose factors or inverses are not finite keeps the inverses it has.

        Args:
            damping: lambda; each factor is damped by its square root.
        Returns:
            The number of layers that were refreshed.
        """
        layouts = [x.a for x in self.layers] + [x.g for x in self.layers]
        root = float(np.sqrt(damping))
        found = [
            damped_inverse(factor.asnumpy(), root, layout) if self._share.mine(index) else None
            for index, (factor, layout) in enumerate(zip(factors, layouts, strict=True))
        ]
        found = self._share.exchange(found, [x.shape for x in layouts])
        count = len(self.layers)
        refreshed = 0
        for index, cell in enumerate(self.preconditioners):
            a, g = found[index], found[count + index]
            if a is None or g is None:
                continue
            assign(cell.a_inverse, a)
            assign(cell.g_inverse, g)
            refreshed += 1
        return refreshed

    def table(self) -> str:
        """One line per captured layer, and what is left out and why."""
        width = max(len(x.name) for x in self.layers)
        lines = [f"{'layer':<{width}}  kind   weight          A blocks    G blocks"]
        for x in self.layers:
            weight = f"{x.g.dim} x {x.a.dim}"
            lines.append(
                f"{x.name:<{width}}  {x.kind:<5}  {weight:<14}  "
                f"{x.a.count:>3} x {x.a.size:<4}  {x.g.count:>3} x {x.g.size}"
            )
        lines.append(
            f"{len(self.layers)} layers preconditioned; plain gradient for "
            f"{len(self._excluded)} parameters (biases, BatchNorm, pooling exponent)"
        )
        return "\n".join(lines)
