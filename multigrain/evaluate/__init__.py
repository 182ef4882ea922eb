"""Evaluation: classification, copy detection, and the job that a worker process runs."""

from __future__ import annotations

from multigrain.jobs.context import Outcome, WorkerContext


def run(ctx: WorkerContext) -> Outcome:
    """Evaluates as ``ctx.request.evaluation`` says; writes the job's ``results/``.

    Raises:
        MultigrainError: DATASET, CHECKPOINT, NOT_FINITE or INVALID_FIELD.
    """
    from multigrain.evaluate.job import run_evaluation  # MindSpore is imported only here

    return run_evaluation(ctx)
