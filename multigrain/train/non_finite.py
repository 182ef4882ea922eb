"""Where a forward pass first went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore
from mindspore import Tensor, nn, ops

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.optim.non_finite import NonFinite


def first_non_finite_layer(model: nn.Cell, images: Tensor) -> str | None:
    """The first layer with an output that is not finite; None if there is none.

    Runs the network once more, outside any graph and in its present mode, BatchNorm's running
    values included: the caller puts them back.

    Returns:
        The layer's path in the network; "the images" where these are not finite themselves.
    """
    if not _finite(images):
        return "the images"
    broken: list[str] = []
    handles = []
    for name, cell in model.cells_and_names():
        # A cell's parts are done before the cell: what is found first is the innermost.
        if not name.endswith("_tap"):
            handles.append(cell.register_forward_hook(_hook(name or "the network", broken)))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return broken[0] if broken else None


def _hook(name: str, broken: list[str]) -> Any:
    def check(_cell: nn.Cell, _inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not broken and not all(_finite(x) for x in tensors if isinstance(x, Tensor)):
            broken.append(name)

    return check


def _finite(x: Tensor) -> bool:
    return bool(ops.isfinite(ops.cast(x, mindspore.float32)).all().asnumpy())


# MERGED: Counts the steps that were skipped, and ends a training that does nothing else.


_LOWER_RATE = "lower schedule.learning_rate.init"
_MORE_DAMPING = "raise optimizer.thor.damping_init"
_ADVICE = {
    "loss": f"{_LOWER_RATE}, or look for broken images there",
    "gradient": f"{_LOWER_RATE}, or bound the step with optimizer.clip_norm",
    "A": f"{_LOWER_RATE}: the layer's inputs are too large for float32",
    "G": f"{_LOWER_RATE}, or bound the step with optimizer.clip_norm",
    "inverse": f"{_MORE_DAMPING} or optimizer.thor.damping_min",
}


@dataclass
class NonFiniteStepCounter:
    """Skipped steps of a run.

    Attributes:
        limit: steps in a row after which the training has diverged.
        in_row: those that count toward it.
        total: all, also those that only a smaller loss scale was needed for.
    """

    limit: int
    in_row: int = 0
    total: int = 0

    def good(self) -> None:
        """Takes note of a step that was taken."""
        self.in_row = 0

    def skip(self, step: int, problem: NonFinite, *, forgiven: bool) -> None:
        """Takes note of a step that was not.

        Args:
            step: its number, from 1.
            problem: what was not finite in it.
            forgiven: whether the next step may do better with a smaller loss scale.
        Raises:
            MultigrainError: DIVERGED, at the ``limit``-th in a row.
        """
        self.total += 1
        if forgiven:
            return
        self.in_row += 1
        if self.in_row >= self.limit:
            raise MultigrainError(
                ErrorKind.DIVERGED,
                f"{problem} was not finite in step {step}; {self.in_row} steps in a row were "
                f"skipped, none of which changed the weights: {_ADVICE[problem.what]}, and start "
                "again from the last checkpoint",
            )
