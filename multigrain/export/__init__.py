"""Export: a trained network becomes a model bundle; and the job that a worker process runs."""

from __future__ import annotations

from multigrain.jobs.context import Outcome, WorkerContext


def run(ctx: WorkerContext) -> Outcome:
    """Exports as ``ctx.request.export`` says, to ``models/<name>/<version>/``.

    Raises:
        MultigrainError: INVALID_FIELD, UNSUPPORTED, ALREADY_EXISTS, NOT_FOUND, CHECKPOINT or
            STORAGE. Nothing appears among the models then.
    """
    from multigrain.export.job import run_export  # MindSpore is imported only here

    return run_export(ctx)
