"""Attaches taps to a network and lists the layers whose curvature is captured."""

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
    """One layer with taps.

    Attributes:
        name: the layer's path in the network.
        kind: "conv" or "dense".
        cell: the layer itself.
        a: blocks of the input side (I * kh * kw).
        g: blocks of the output side (O).
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
        """The weight that is preconditioned, (O, I) or (O, I, kh, kw)."""
        return self.cell.weight

    @property
    def slots(self) -> tuple[Parameter, Parameter]:
        """The taps' slots, whose "gradients" are sqrt(T) A and sqrt(T) G.

        They are the stored inverses, which have the right shapes and cost no further memory.
        """
        return self.preconditioner.a_inverse, self.preconditioner.g_inverse


def attach(
    net: nn.Cell,
    *,
    block_size: int,
    row_limit: int = ROW_LIMIT,
    world: int = 1,
) -> list[CapturedLayer]:
    """Attaches taps to every convolution and dense layer of ``net``, SE layers included.

    Do it before the first call: graphs that exist already do not change. A second call on the
    same network replaces the taps.

    Args:
        block_size: side of the diagonal blocks.
        row_limit: most rows (examples x positions) a factor is built from, over all workers.
        world: number of workers. They share the rows, so that the same positions are used
            however many workers a batch is divided among.

    Raises:
        MultigrainError: UNSUPPORTED, naming the layer, for a grouped convolution: its groups see
            different inputs, so that one pair of factors does not describe it.
    """
    row_limit = row_limit // world
    _refuse_groups(net)
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
    """A cell whose own parameters keep their plain gradient.

    Attributes:
        name: the cell's path in the network.
        parameters: the last parts of their names, such as "bias".
        reason: why there is no curvature for them.
    """

    name: str
    parameters: tuple[str, ...]
    reason: str


def excluded(net: nn.Cell) -> list[ExcludedLayer]:
    """What :func:`attach` leaves out of a network, in its order; with nothing trained: no entry."""
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
        return "a bias has plain momentum in THOR"
    if isinstance(cell, nn.BatchNorm2d):
        return "BatchNorm's scale and shift are no matrix"
    if isinstance(cell, GeM):
        return "the pooling exponent is one number"
    return f"no capture exists for {type(cell).__name__}"


def _refuse_groups(net: nn.Cell) -> None:
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
                f"{name or 'the network'} is a convolution in {groups} groups, which THOR does "
                "not capture; set optimizer.kind to 'momentum'",
            )


# MERGED: The printed list of what has curvature and what has none.


def curvature_table(layers: Sequence[CapturedLayer], left_out: Sequence[ExcludedLayer]) -> str:
    """How many there are; one line for each captured layer, one for each cell left out, and why."""
    excluded_names = [f"{x.name}.({', '.join(x.parameters)})" for x in left_out]
    width = max(len(name) for name in [*(x.name for x in layers), *excluded_names, "layer"])
    plain = sum(len(x.parameters) for x in left_out)
    lines = [
        f"{len(layers)} layers preconditioned, {plain} parameters with their plain gradient",
        f"{'layer':<{width}}  kind   weight          A blocks    G blocks",
    ]
    for x in layers:
        weight = f"{x.g.dim} x {x.a.dim}"
        lines.append(
            f"{x.name:<{width}}  {x.kind:<5}  {weight:<14}  "
            f"{x.a.count:>3} x {x.a.size:<4}  {x.g.count:>3} x {x.g.size}"
        )
    for name, cell in zip(excluded_names, left_out, strict=True):
        lines.append(f"{name:<{width}}  excluded because {cell.reason}")
    return "\n".join(lines)
