"""What the jobs that have not ended need of others."""

from __future__ import annotations

import os
from pathlib import Path

from multigrain.jobs.job_request import JobRequest
from multigrain_server.jobs.supervisor import Supervisor


class Needs:
    """See the module. Each answer is the id of one such job, or "" if there is none."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def reader_of(self, folder: Path) -> str:
        """A job that begins with weights below a folder."""
        active = self._supervisor.active.values()
        return next((a.job_id for a in active if _reads(a.request, folder)), "")

    def exporter_of(self, name: str) -> str:
        """A job that will write a model of this name."""
        active = self._supervisor.active.values()
        exports = ((a.job_id, a.request.export) for a in active)
        return next((job_id for job_id, e in exports if e and e.model_name == name), "")


def _reads(request: JobRequest, folder: Path) -> bool:
    paths = [request.weights_path, request.training.initial_weights if request.training else ""]
    real = os.path.realpath(folder)
    return any(path and Path(os.path.realpath(path)).is_relative_to(real) for path in paths)
