"""Evaluation: classification, copy detection, retrieval, and the job that a worker runs."""

from __future__ import annotations

from multigrain.jobs.context import Outcome, WorkerContext


def run(ctx: WorkerContext) -> Outcome:
    """Evaluates according to ``ctx.request.evaluation`` and writes the job's ``results/``.

    Raises:
        MultigrainError: DATASET, CHECKPOINT, NOT_FINITE or INVALID_FIELD.
    """
    from multigrain.evaluate.job import run_evaluation  # imports MindSpore

    return run_evaluation(ctx)
