"""Export of a trained network to a model bundle, and the job that a worker process runs."""

from __future__ import annotations

from multigrain.jobs.context import Outcome, WorkerContext


def run(ctx: WorkerContext) -> Outcome:
    """Exports according to ``ctx.request.export``, to ``models/<name>/<version>/``.

    Raises:
        MultigrainError: INVALID_FIELD, UNSUPPORTED, ALREADY_EXISTS, NOT_FOUND, CHECKPOINT or
            STORAGE. No bundle is published then.
    """
    from multigrain.export.job import run_export  # imports MindSpore

    return run_export(ctx)
