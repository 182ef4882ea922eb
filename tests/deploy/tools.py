"""Tools that check the files of deploy/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def packaged(tool: str) -> str:
    """A tool that comes as a package of the extra ``dev``, beside this Python."""
    found = shutil.which(tool, path=str(Path(sys.executable).parent))
    assert found, f"{tool} is not installed: pip install '.[dev]'"
    return found


def system(tool: str) -> str:
    """A tool of the operating system. Skips the test where it has none of that name."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"this system has no {tool}")
    return found


def output(*command: str) -> str:
    """What a command prints; fails the test with all it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
