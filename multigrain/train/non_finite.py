"""Steps with non-finite numbers: where they begin, and when there have been too many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore
from mindspore import Tensor, nn, ops

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.optim.non_finite import NonFinite

_LOWER_RATE = "lower schedule.learning_rate.init"
_MORE_DAMPING = "raise optimizer.thor.damping_init"
_ADVICE = {
    "loss": f"{_LOWER_RATE}, or look for damaged images there",
    "gradient": f"{_LOWER_RATE}, or bound the step with optimizer.clip_norm",
    "A": f"{_LOWER_RATE}: the layer's inputs are too large for float32",
    "G": f"{_LOWER_RATE}, or bound the step with optimizer.clip_norm",
    "inverse": f"{_MORE_DAMPING} or optimizer.thor.damping_min",
}


@dataclass
class NonFiniteStepCounter:
    """Counts skipped steps, and ends a training run that has diverged.

    Attributes:
        limit: number of consecutive counted steps at which the run has diverged.
        in_row: consecutive steps counted toward the limit.
        total: all skipped steps, tolerated ones included.
    """

    limit: int
    in_row: int = 0
    total: int = 0

    def step_applied(self) -> None:
        """Records a step that updated the weights."""
        self.in_row = 0

    def step_skipped(self, step: int, problem: NonFinite, *, tolerated: bool) -> None:
        """Records a skipped step.

        Args:
            step: its number, from 1.
            problem: what was non-finite.
            tolerated: not counted toward the limit, because a smaller loss scale may help.

        Raises:
            MultigrainError: DIVERGED, at the ``limit``-th step in a row.
        """
        self.total += 1
        if tolerated:
            return
        self.in_row += 1
        if self.in_row >= self.limit:
            raise MultigrainError(
                ErrorKind.DIVERGED,
                f"{problem} was not finite in step {step}; {self.in_row} steps in a row were "
                f"skipped, none of which changed the weights: {_ADVICE[problem.what]}, and start "
                "again from the last checkpoint",
            )


def first_non_finite_layer(model: nn.Cell, images: Tensor) -> str | None:
    """Finds the first layer with a non-finite output; None if there is none.

    Runs the network once more, outside any graph and in its present mode. This changes
    BatchNorm's running statistics: the caller restores them.

    Returns:
        The layer's path in the network, or "the images" if those are non-finite themselves.
    """
    if not _finite(images):
        return "the images"
    found: list[str] = []
    handles = []
    for name, cell in model.cells_and_names():
        # The hook of an inner cell runs before its parent's: the innermost cell is found first.
        if not name.endswith("_tap"):
            handles.append(cell.register_forward_hook(_hook(name or "the network", found)))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _hook(name: str, found: list[str]) -> Any:
    def check(_cell: nn.Cell, _inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not found and not all(_finite(x) for x in tensors if isinstance(x, Tensor)):
            found.append(name)

    return check


def _finite(x: Tensor) -> bool:
    return bool(ops.isfinite(ops.cast(x, mindspore.float32)).all().asnumpy())
