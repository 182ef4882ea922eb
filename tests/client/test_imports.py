"""Import time and dependencies of the client."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAVY = ("mindspore", "pydantic", "PIL", "yaml", "rich", "matplotlib", "sklearn", "psutil")


def in_fresh_interpreter(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.strip()


@pytest.mark.parametrize("module", ["multigrain_client", "multigrain_client.cli"])
def test_import_loads_no_heavy_package_and_only_light_modules_of_the_library(module):
    loaded = in_fresh_interpreter(f"import sys, {module}; print(*sys.modules)").split()
    assert not {name for name in loaded if name.partition(".")[0] in HEAVY}
    own = {name for name in loaded if name.partition(".")[0] == "multigrain"}
    rest = {name for name in own if not name.startswith("multigrain.v1")}
    assert rest - {"multigrain.streams"} == {
        "multigrain",
        "multigrain.addresses",
        "multigrain.bundle",
        "multigrain.bundle.members",
        "multigrain.bundle.tar",
        "multigrain.data",
        "multigrain.data.file_names",
        "multigrain.data.listing",
        "multigrain.files",
        "multigrain.images",
        "multigrain.images.formats",
        "multigrain.text",
    }
    assert ("multigrain.streams" in rest) == (module == "multigrain_client.cli")
    assert "multigrain_server" not in loaded


@pytest.mark.process
@pytest.mark.slow
def test_client_installs_without_mindspore(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-input", str(ROOT)]
    subprocess.run(install, check=True, timeout=500)
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.lower()
    installed = {line.partition("==")[0] for line in listed.splitlines()}
    assert {"multigrain", "grpcio", "protobuf", "numpy"} <= installed
    assert not installed & {"mindspore", "pydantic", "pillow", "onnxruntime", "rich"}
    code = (
        "import multigrain_client as m; client = m.Client('127.0.0.1:1', timeout=1.0);\n"
        "try: client.embed(b'x')\n"
        "except m.Unavailable: print('ok')"
    )
    ran = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout == "ok\n"
    script = tmp_path / "venv" / "bin" / "multigrain"
    version = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("multigrain ")
    server = tmp_path / "venv" / "bin" / "multigrain-server"
    refused = subprocess.run([str(server)], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        "is not installed: pip install 'multigrain[serve]' "
        "(serves models) or 'multigrain[server]' (trains as well)\n"
    )
    assert refused.stderr.count("\n") == 1
