"""Names of the files in a job's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobFolder:
    """``<data-dir>/jobs/<job-id>/``."""

    path: Path

    @property
    def job_id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        """The specification, immutable: see ``multigrain.jobs.job_request.JobRequest``."""
        return self.path / "spec.json"

    @property
    def events(self) -> Path:
        """The event log. Its writer holds an exclusive ``flock`` on it."""
        return self.path / "events.jsonl"

    @property
    def runner(self) -> Path:
        """Pid and start time of the runner process, written by the runner."""
        return self.path / "runner.json"

    @property
    def lease(self) -> Path:
        """The devices of a running job: written by the daemon, for the next daemon."""
        return self.path / "lease.json"

    @property
    def image_limits(self) -> Path:
        """The limits of an image file: written by the daemon when it starts the runner."""
        return self.path / "image_limits.json"

    @property
    def cancel(self) -> Path:
        """Exists once cancellation was requested: written by the daemon, for the next daemon."""
        return self.path / "cancel"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Links to the checkpoint of another job that an evaluation or export reads."""
        return self.path / "weights"

    @property
    def held_out(self) -> Path:
        """Which images a training run has held out; see ``multigrain.data.held_out``. An
        evaluation or export of its weights has a copy."""
        return self.path / "held_out.json"

    @property
    def logs(self) -> Path:
        """``workers/``: logs of the scheduler, the runner and every worker."""
        return self.path / "workers"

    @property
    def results(self) -> Path:
        """Files an evaluation writes (per-image results, confusion matrix). A training run has
        those of its latest scheduled evaluation, and in ``best/`` those of the best one."""
        return self.path / "results"
