from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.jobs.harness import Job, make_job


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Creates jobs whose processes are killed after the test."""
    jobs: list[Job] = []

    def make(**options: object) -> Job:
        jobs.append(make_job(tmp_path, **options))  # type: ignore[arg-type]
        return jobs[-1]

    yield make
    for job in jobs:
        job.end()
