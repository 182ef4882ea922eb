"""Helpers for the tests of specifications."""

from __future__ import annotations

from typing import Any

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.resolve import resolve_training

DATA = {"dataset": {"train_path": "/data/train"}}
WEIGHTS = {"weights": {"job_id": "j1"}}


def refused(overrides: dict[str, Any], resolve: Any = resolve_training) -> dict[str, str]:
    """Returns the violations of an error, by field."""
    with pytest.raises(MultigrainError) as caught:
        resolve(overrides)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert caught.value.violations
    for violation in caught.value.violations:
        assert f"{violation.field}: {violation.message}" in caught.value.message
    return {violation.field: violation.message for violation in caught.value.violations}


def with_data(**groups: Any) -> dict[str, Any]:
    return {**DATA, **groups}
