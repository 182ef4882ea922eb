"""The data folder of most tests of models; the others have a ``root`` of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.bundles import write_bundle


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of a daemon's data, with two versions of one model."""
    write_bundle(tmp_path / "models", version=1)
    write_bundle(tmp_path / "models", version=2)
    return tmp_path
