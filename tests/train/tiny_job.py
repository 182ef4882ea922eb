"""A whole training job of the tiny network, in one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from multigrain.jobs.context import Outcome, Reporter, WorkerContext
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.model.multigrain import MultiGrain
from multigrain.specs.training import ModelSpec, TrainingSpec
from multigrain.train import job
from tests.train.tiny import tiny_model


def build(spec: ModelSpec, classes: int, *, seed: int) -> MultiGrain:
    """Replaces ``build_model``."""
    net = tiny_model(learn_gem_p=spec.learn_gem_p)
    net.pool.set_exponent(spec.gem_p)
    return net


@dataclass(frozen=True)
class TinyJob:
    """
    Args:
        path: the job's folder.
        spec: the training run.
    """

    path: Path
    spec: TrainingSpec

    @property
    def folder(self) -> JobFolder:
        return JobFolder(self.path)

    def run(self, reporter: Reporter) -> Outcome:
        """Runs an attempt from the newest checkpoint."""
        request = JobRequest(
            job_id="job",
            kind=JobKind.TRAINING,
            create_time="2026-01-31T12:00:00Z",
            training=self.spec,
        )
        context = WorkerContext(request=request, folder=self.folder, reporter=reporter)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "build_model", build)
            return job.run_training(context)
