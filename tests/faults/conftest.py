from __future__ import annotations

from tests.jobs.conftest import new_job

__all__ = ["new_job"]
