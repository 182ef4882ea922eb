"""Training: the step, the loop around it, and the job that a worker process runs."""

from __future__ import annotations

from multigrain.jobs.context import Outcome, WorkerContext


def run(ctx: WorkerContext) -> Outcome:
    """Trains as ``ctx.request.training`` says, from the newest good checkpoint if there is one.

    Raises:
        MultigrainError: DATASET, CHECKPOINT, DIVERGED, STORAGE or INVALID_FIELD.
    """
    from multigrain.train.job import run_training  # MindSpore is imported only here

    return run_training(ctx)
