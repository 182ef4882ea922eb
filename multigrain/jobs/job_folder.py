"""The folder of one job: names of its files, nothing else."""

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
        """What was asked, immutable: see ``multigrain.jobs.job_request.JobRequest``."""
        return self.path / "spec.json"

    @property
    def events(self) -> Path:
        """THE record of the job. Whoever writes it holds an exclusive ``flock`` on it."""
        return self.path / "events.jsonl"

    @property
    def runner(self) -> Path:
        """Pid and start time of the runner process, written by itself."""
        return self.path / "runner.json"

    @property
    def lease(self) -> Path:
        """Which devices the running job has: written by the daemon, for the next one."""
        return self.path / "lease.json"

    @property
    def cancel(self) -> Path:
        """That somebody asked the job to end: written by the daemon, for the next one."""
        return self.path / "cancel"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The weights that an evaluation or export of a job's checkpoint reads: links to them."""
        return self.path / "weights"

    @property
    def logs(self) -> Path:
        """``workers/``: logs of msrun, the scheduler, the runner and every rank."""
        return self.path / "workers"

    @property
    def results(self) -> Path:
        """Files an evaluation writes (per-image results, confusion matrix)."""
        return self.path / "results"
