"""The unit of systemd, with the tool that systemd has for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.named import DEPLOY
from tests.deploy.tools import output, system

# Of 100, less is safer. A service without any confinement has 96.
_EXPOSURE = 25


@pytest.fixture
def unit(tmp_path: Path) -> str:
    """As on a machine where the daemon is installed."""
    text = (DEPLOY / "systemd" / "multigrain.service").read_text()
    path = tmp_path / "multigrain.service"
    path.write_text(text.replace("/opt/multigrain/bin", str(Path(sys.executable).parent)))
    return str(path)


def test_unit_passes_systemd_analyze_verify(unit: str) -> None:
    done = subprocess.run(
        [system("systemd-analyze"), "verify", unit], capture_output=True, text=True, timeout=300
    )
    # What it does not understand it names and ignores.
    assert done.returncode == 0, done.stderr
    assert "multigrain.service" not in done.stderr


def test_service_is_confined(unit: str) -> None:
    analyze = system("systemd-analyze")
    output(analyze, "security", "--offline=true", f"--threshold={_EXPOSURE}", unit)
