"""Which paths the sandboxes of this project leave readable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from multigrain.sandbox.policies import library_paths


def test_all_of_a_folder_with_installed_packages_is_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pip install --target FOLDER``: libraries and namespace packages are beside the modules."""
    for name in ("numpy", "numpy.libs", "google/protobuf", "numpy-1.26.4.dist-info"):
        (tmp_path / "libraries" / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "libraries")])
    assert tmp_path / "libraries" in library_paths()


def test_data_beside_the_sources_of_a_project_is_not_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("project/package/__init__.py", "project/module.py", "project/data/secret.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "project")])
    found = [path for path in library_paths() if path.is_relative_to(tmp_path)]
    assert sorted(found) == [tmp_path / "project/module.py", tmp_path / "project/package"]
