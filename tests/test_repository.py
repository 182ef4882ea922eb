"""Layout of the repository: top-level entries, file lengths, no build products."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    ".ci",
    ".dockerignore",
    ".editorconfig",
    ".gitattributes",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "NOTICE",
    "README.md",
    "SECURITY.md",
    "benchmarks",
    "buf.yaml",
    "client",
    "deploy",
    "docs",
    "examples",
    "mkdocs.yml",
    "multigrain",
    "protos",
    "pyproject.toml",
    "requirements",
    "server",
    "tests",
    "tools",
}
MAX_LINES = 600
GENERATED = "multigrain/v1/"
# Left behind by runs, builds and editors; never committed on purpose.
LITTER = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".venv", "build", "dist"}
LITTER_SUFFIXES = {".pyc", ".log", ".ckpt", ".mindir", ".onnx", ".safetensors", ".db", ".egg-info"}
MAX_BYTES = 1 << 20


@cache
def _files() -> tuple[str, ...]:
    """Tracked files that exist in the working tree."""
    git = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if git.returncode == 0 and git.stdout:
        names = git.stdout.rstrip("\0").split("\0")
        return tuple(name for name in names if (ROOT / name).is_file())
    pytest.skip("not a git checkout")


def test_top_level_entries_are_known() -> None:
    assert {name.split("/")[0] for name in _files()} - TOP == set()


def test_source_files_are_at_most_600_lines() -> None:
    long = {
        name: lines
        for name in _files()
        if name.endswith((".py", ".proto", ".yaml"))
        and not name.startswith(GENERATED)
        and (lines := (ROOT / name).read_text(encoding="utf-8").count("\n")) > MAX_LINES
    }
    assert long == {}


def test_no_build_products_are_tracked() -> None:
    litter = [
        name
        for name in _files()
        if LITTER & set(Path(name).parts) or Path(name).suffix in LITTER_SUFFIXES
    ]
    assert litter == []


def test_no_tracked_file_is_large() -> None:
    assert [name for name in _files() if (ROOT / name).stat().st_size > MAX_BYTES] == []


def test_every_python_folder_is_a_package() -> None:
    """Without ``__init__.py`` two tests of the same name shadow each other silently."""
    folders = {
        str(Path(name).parent)
        for name in _files()
        if name.endswith(".py") and "/" in name and not name.startswith((".ci", "deploy", "docs"))
    }
    assert [name for name in sorted(folders) if not (ROOT / name / "__init__.py").exists()] == []
