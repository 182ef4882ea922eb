"""``multigrain-server`` where its dependencies are missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = ("structlog", "pydantic", "prometheus_client", "grpc_health", "aiohttp", "jinja2")


def _start_without(module: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "sys.argv = ['multigrain-server', '--print-config']\n"
        "from multigrain_server.__main__ import main; sys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", MODULES)
def test_missing_dependency_says_what_to_install(module: str) -> None:
    run = _start_without(module)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == (
        f"multigrain-server: needs {module}, which is not installed: "
        "pip install 'multigrain[server]'\n"
    )


def test_missing_module_of_the_project_is_a_traceback() -> None:
    run = _start_without("multigrain_server.app")
    assert "ModuleNotFoundError" in run.stderr
    assert "pip install" not in run.stderr


@pytest.mark.process
def test_python_m_runs_the_command_line() -> None:
    command = [sys.executable, "-m", "multigrain_server", "--print-config"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "grpc:" in run.stdout or "listen:" in run.stdout
