"""Training: the step, the loop around it, and the job that a worker process runs."""

from __future__ import annotations

from multigrain.jobs.context import Outcome, WorkerContext


def run(ctx: WorkerContext) -> Outcome:
    """Trains according to ``ctx.request.training``, from the newest intact checkpoint if any.

    Raises:
        MultigrainError: DATASET, CHECKPOINT, DIVERGED, STORAGE or INVALID_FIELD.
    """
    from multigrain.train.job import run_training  # imports MindSpore

    return run_training(ctx)
