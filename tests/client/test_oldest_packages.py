"""The client in a program that holds the oldest gRPC and protobuf that pyproject.toml allows."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALL = """
import sys, google.protobuf, grpc
from multigrain_client import Client, MultigrainClientError
with Client(sys.argv[1]) as client:
    vectors = client.embed([b"one", b"two"])
    try:
        client.model("absent")
    except MultigrainClientError as error:
        print(type(error).__name__)
print(vectors.shape[0], google.protobuf.__version__, grpc.__version__)
"""


def oldest() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [re.match(r"([\w-]+)>=([\d.]+)", text) for text in project["dependencies"]]
    return [f"{pin[1]}=={pin[2]}" if pin[1] != "numpy" else "numpy" for pin in pins if pin]


@pytest.mark.process
@pytest.mark.slow
def test_client_calls_with_the_oldest_packages(server, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
    subprocess.run([*install, *oldest()], check=True, timeout=300)
    code = [python, "-W", "error::UserWarning", "-c", CALL, server.address]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
    ran = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr
    versions = dict(pin.split("==") for pin in oldest() if "==" in pin)
    assert ran.stdout.split() == ["NotFound", "2", versions["protobuf"], versions["grpcio"]]
