"""``multigrain-server`` where its dependencies or standard streams are missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
        "pip install 'multigrain[serve]' (serves models) or 'multigrain[server]' (trains as well)\n"
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


@pytest.mark.process
def test_closed_standard_streams_are_the_null_device(tmp_path: Path) -> None:
    """Otherwise sockets get their numbers, and libraries write to standard error into them."""
    data = tmp_path / "data"
    words = [sys.executable, "-m", "multigrain_server", f"--data-dir={data}"]
    words += ["--listen=127.0.0.1:0", "--http-listen="]
    daemon = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words])
    try:
        deadline = time.monotonic() + 60
        while not (data / "address").exists():
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in range(3):
            assert os.readlink(f"/proc/{daemon.pid}/fd/{number}") == os.devnull
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
