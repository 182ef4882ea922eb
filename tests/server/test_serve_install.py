"""The extra ``serve``: a daemon without MindSpore, scipy, matplotlib, onnx and nncf."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_client import Client, WrongState
from multigrain_server.jobs import training_packages
from tests.engine.bundles import EMBEDDING, write_bundle
from tests.engine.pictures import picture

ROOT = Path(__file__).resolve().parents[2]
# What a serving daemon and its engines import, early or late.
SERVING = (
    "multigrain_server.app",
    "multigrain_server.main",
    "multigrain_server.doctor.report",
    "multigrain_server.http.server",
    "multigrain_server.http.metrics_page",
    "multigrain_server.status.site",
    "multigrain.engine.__main__",
    "multigrain.engine.serve",
    "multigrain.engine.runtimes.choice",
    "multigrain.bundle.folder",
)
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib
for name in {modules}:
    importlib.import_module(name)
"""


@pytest.mark.process
def test_serving_imports_nothing_that_the_extra_lacks() -> None:
    code = BLOCK.replace("{packages}", repr(training_packages.PACKAGES))
    code = code.replace("{modules}", repr(SERVING))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr


def test_a_job_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    training_packages.require()  # everything is installed here
    monkeypatch.setattr(training_packages, "PACKAGES", ("numpy", "not_there"))
    with pytest.raises(MultigrainError, match=r"without not_there; .*'multigrain\[server\]'") as e:
        training_packages.require()
    assert e.value.kind is ErrorKind.WRONG_STATE


def test_a_python_without_a_wheel_of_mindspore_is_named() -> None:
    assert "no wheel for Python 3.13" in training_packages.how_to_add((3, 13))
    assert "no wheel" not in training_packages.how_to_add((3, 12))


@pytest.mark.process
@pytest.mark.slow
def test_the_extra_serves_and_refuses_jobs(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    lock = ["--require-hashes", "--requirement", str(ROOT / "requirements" / "serve.txt")]
    subprocess.run([*install, *lock], check=True, timeout=300)
    subprocess.run([*install, "--no-build-isolation", str(ROOT)], check=True, timeout=100)
    data = tmp_path / "data"
    write_bundle(data / "models")
    server = str(tmp_path / "venv" / "bin" / "multigrain-server")
    # A package of this environment must not help.
    environment = {**os.environ, "MULTIGRAIN_SERVING__MODELS": '["absent", "tiny"]'}
    environment.pop("PYTHONPATH", None)
    options = [f"--data-dir={data}", "--listen=127.0.0.1:0", "--http-listen="]
    options += [f"--data-root={tmp_path}"]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [server, *options], env=environment, stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        address = data / "address"
        end = time.monotonic() + 60
        while not address.exists() or address.stat().st_size == 0:
            assert daemon.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        with Client(address.read_text().strip()) as client:
            client.load_model("tiny")  # waits for the load at the start
            (vector,) = client.embed([picture(1)])
            assert vector.shape == (EMBEDDING,)
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            with pytest.raises(WrongState, match=r"without mindspore, .*\[server\]"):
                client.start_training(dataset={"train_path": str(tmp_path)})
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
    doctor = subprocess.run(
        [server, "doctor", *options], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert "ok    training: none: mindspore, scipy" in doctor.stdout
    assert "ok    packages: satisfy multigrain[serve]" in doctor.stdout
