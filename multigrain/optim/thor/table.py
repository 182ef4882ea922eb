"""The printed list of what has curvature and what has none."""

from __future__ import annotations

from collections.abc import Sequence

from multigrain.optim.thor.capture import CapturedLayer, ExcludedLayer


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
