"""Training steps that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.train.step_pool import StepPool


@pytest.fixture(scope="session")
def _pool() -> StepPool:
    from tests.train.step_pool import StepPool  # imports MindSpore

    return StepPool()


@pytest.fixture
def shared_step(_pool: StepPool) -> Iterator[StepPool]:
    yield _pool
    _pool.reset()
