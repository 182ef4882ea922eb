"""``pytest --quick`` runs the tests without markers and fails those that lack one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

TESTS = """
import subprocess
import sys

import pytest


def test_plain():
    pass


def test_import():
    import mindspore


def test_start():
    subprocess.run([sys.executable, "-m", "multigrain.engine", "--help"], capture_output=True)


@pytest.mark.process
def test_marked_start():
    raise AssertionError


@pytest.mark.mindspore
def test_marked_import():
    raise AssertionError


@pytest.mark.slow
def test_slow():
    raise AssertionError
"""
MINDSPORE_FILE = """
import mindspore
import pytest

pytestmark = pytest.mark.mindspore
"""


def test_quick_runs_unmarked_tests_and_reports_missing_markers(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  mindspore\n  process\n  slow\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole_file.py").write_text(MINDSPORE_FILE)
    command = [sys.executable, "-m", "pytest", "--quick", "-p", "no:cacheprovider", tmp_path]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "1 failed, 2 passed, 3 deselected, 1 error" in run.stdout, run.stdout
    assert "test_import - AssertionError: MindSpore is imported" in run.stdout
    assert "test_start - AssertionError" in run.stdout
    assert "the test needs the marker `process`" in run.stdout


def test_no_conftest_imports_mindspore() -> None:
    """It is imported before the tests of its folder are deselected."""
    root = Path(__file__).parents[1]
    files = [path.relative_to(root) for path in Path(__file__).parent.rglob("conftest.py")]
    files.sort(key=lambda path: len(path.parts))  # as pytest: that of tests/ is the first
    modules = ", ".join(".".join(path.with_suffix("").parts) for path in files)
    code = f"import sys; sys.modules['mindspore'] = None; import {modules}"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
