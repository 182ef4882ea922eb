"""Attaches curvature taps to a network's layers, and lists the layers without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mindspore import Parameter, nn

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.gem import GeM
from multigrain.model.layers import Conv2d, Dense
from multigrain.model.state import CURVATURE_PREFIX
from multigrain.optim.thor.blocks import BlockLayout
from multigrain.optim.thor.preconditioner import LayerPreconditioner
from multigrain.optim.thor.taps import (
    ROW_LIMIT,
    ConvInputTap,
    ConvOutputTap,
    DenseInputTap,
    DenseOutputTap,
)


@dataclass(frozen=True)
class CapturedLayer:
    """A preconditioned layer: taps are attached to it.

    Attributes:
        name: the layer's path in the network.
        kind: "conv" or "dense".
        cell: the layer itself.
        a: block layout of the input side (I * kh * kw).
        g: block layout of the output side (O).
        preconditioner: the stored inverses.
    """

    name: str
    kind: str
    cell: Conv2d | Dense
    a: BlockLayout
    g: BlockLayout
    preconditioner: LayerPreconditioner

    @property
    def weight(self) -> Parameter:
        """The preconditioned weight, (O, I) or (O, I, kh, kw)."""
        return self.cell.weight

    @property
    def slots(self) -> tuple[Parameter, Parameter]:
        """The taps' slots, whose "gradients" are sqrt(T) A and sqrt(T) G.

        The stored inverses serve as slots: they have the right shapes, so that no further memory
        is needed.
        """
        return self.preconditioner.a_inverse, self.preconditioner.g_inverse


def attach_taps(
    net: nn.Cell,
    *,
    block_size: int,
    row_limit: int = ROW_LIMIT,
    world: int = 1,
) -> list[CapturedLayer]:
    """Attaches taps to every convolution and dense layer of ``net``, SE layers included.

    Call it before the network's first call: compiled graphs do not change. A second call on the
    same network replaces the taps.

    Args:
        net: the network.
        block_size: side of the diagonal blocks.
        row_limit: most rows (examples x positions) a factor is built from, over all workers.
        world: number of workers. The limit is divided among them, so that the same positions are
            sampled for any number of workers.

    Raises:
        MultigrainError: UNSUPPORTED, naming the layer, for a grouped convolution: its groups see
            different inputs, so one pair of factors does not describe it.
    """
    row_limit = row_limit // world
    _check_no_groups(net)
    captured = []
    for name, cell in net.cells_and_names():
        if isinstance(cell, Conv2d):
            a = BlockLayout.of(cell.in_channels * cell.kernel[0] * cell.kernel[1], block_size)
            g = BlockLayout.of(cell.out_channels, block_size)
            cell.input_tap = ConvInputTap(a, cell, row_limit)
            cell.output_tap = ConvOutputTap(g, cell, row_limit)
            kind = "conv"
        elif isinstance(cell, Dense):
            a = BlockLayout.of(cell.in_channels, block_size)
            g = BlockLayout.of(cell.out_channels, block_size)
            cell.input_tap = DenseInputTap(a)
            cell.output_tap = DenseOutputTap(g)
            kind = "dense"
        else:
            continue
        layer = CapturedLayer(name, kind, cell, a, g, LayerPreconditioner(name, a, g))
        cell.a_slot, cell.g_slot = layer.slots
        cell.tapped = True
        captured.append(layer)
    return captured


@dataclass(frozen=True)
class ExcludedLayer:
    """A cell with parameters that are not preconditioned.

    Attributes:
        name: the cell's path in the network.
        parameters: the last parts of their names, such as "bias".
        reason: why they are not preconditioned.
    """

    name: str
    parameters: tuple[str, ...]
    reason: str


def excluded_layers(net: nn.Cell) -> list[ExcludedLayer]:
    """Lists the cells with trainable parameters that :func:`attach_taps` does not precondition."""
    found = []
    for name, cell in net.cells_and_names():
        names = tuple(
            key
            for key, p in cell._params.items()
            if p is not None and p.requires_grad and not p.name.startswith(CURVATURE_PREFIX)
        )
        if isinstance(cell, (Conv2d, Dense)):
            names = tuple(key for key in names if key != "weight")
        if names:
            found.append(ExcludedLayer(name, names, _reason(cell)))
    return found


def _reason(cell: nn.Cell) -> str:
    if isinstance(cell, (Conv2d, Dense)):
        return "THOR does not precondition biases"
    if isinstance(cell, nn.BatchNorm2d):
        return "BatchNorm's scale and shift are not a matrix"
    if isinstance(cell, GeM):
        return "the pooling exponent is a scalar"
    return f"no taps exist for {type(cell).__name__}"


def _check_no_groups(net: nn.Cell) -> None:
    for name, cell in net.cells_and_names():
        if isinstance(cell, Conv2d):
            groups = cell.groups
        elif isinstance(cell, nn.Conv2d):
            groups = cell.group
        else:
            continue
        if groups > 1:
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"{name or 'the network'} is a convolution with {groups} groups, which THOR does "
                "not support; set optimizer.kind to 'momentum'",
            )


def curvature_table(layers: Sequence[CapturedLayer], excluded: Sequence[ExcludedLayer]) -> str:
    """Formats a summary table of the preconditioned and the excluded layers."""
    excluded_names = [f"{x.name}.({', '.join(x.parameters)})" for x in excluded]
    width = max(len(name) for name in [*(x.name for x in layers), *excluded_names, "layer"])
    plain = sum(len(x.parameters) for x in excluded)
    lines = [
        f"{len(layers)} layers preconditioned, {plain} parameters with plain gradients",
        f"{'layer':<{width}}  kind   weight          A blocks    G blocks",
    ]
    for x in layers:
        weight = f"{x.g.dim} x {x.a.dim}"
        lines.append(
            f"{x.name:<{width}}  {x.kind:<5}  {weight:<14}  "
            f"{x.a.count:>3} x {x.a.size:<4}  {x.g.count:>3} x {x.g.size}"
        )
    for name, cell in zip(excluded_names, excluded, strict=True):
        lines.append(f"{name:<{width}}  excluded: {cell.reason}")
    return "\n".join(lines)
