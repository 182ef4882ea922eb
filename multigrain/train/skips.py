"""Counts the steps that were skipped, and ends a training that does nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.optim.not_finite import NotFinite

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
class Skips:
    """Skipped steps of a run.

    Attributes:
        limit: steps in a row after which the training has diverged.
        in_row: those that count towards it.
        total: all, also those that only a smaller loss scale was needed for.
    """

    limit: int
    in_row: int = 0
    total: int = 0

    def good(self) -> None:
        """Takes note of a step that was taken."""
        self.in_row = 0

    def skip(self, step: int, problem: NotFinite, *, forgiven: bool) -> None:
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
