"""The share of a worker in the CPUs that a job may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multigrain.jobs import worker
from multigrain.jobs.job_folder import JobFolder
from multigrain.machine import THREAD_VARIABLES, Cpus


@pytest.mark.parametrize(
    ("cpus", "world", "requested", "threads"),
    [
        (Cpus(64, 64), 1, 0, 64),
        (Cpus(64, 64), 4, 0, 16),
        (Cpus(64, 64, 1.0), 1, 0, 1),
        (Cpus(64, 64, 3.5), 1, 0, 4),
        (Cpus(64, 64, 8.0), 4, 0, 2),
        (Cpus(64, 64, 2.0), 8, 0, 1),
        (Cpus(64, 6), 2, 0, 3),
        (Cpus(64, 64, 1.0), 1, 5, 5),
    ],
)
def test_numerical_libraries_use_the_workers_share_of_the_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: Cpus, world: int, requested: int, threads: int
) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "99")
    monkeypatch.setattr(worker, "cpus", lambda: cpus)
    options = worker.RankOptions(
        folder=JobFolder(Path("/job")),
        attempt=1,
        rank=0,
        world=world,
        target="cpu",
        threads=requested,
        device_id=0,
        address="",
        token="",
        clustered=False,
    )
    worker._limit_threads(options)
    assert {os.environ[name] for name in THREAD_VARIABLES} == {str(threads)}
