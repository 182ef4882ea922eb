"""Every command of the README and the tutorials works as it is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.digits import write_digits
from tests.conftest import GRAPHS
from tests.docs.blocks import RUNNABLE, blocks, script
from tests.e2e.daemon import processes_below
from tests.engine.bundles import write_bundle
from tools.docs.markdown import ROOT

README = ROOT / "README.md"
FIRST_TRAINING = ROOT / "docs" / "tutorials" / "first-training.md"
DATA_DIRECTORY = ROOT / "docs" / "reference" / "data-directory.md"
OWN_PHOTOGRAPHS = ROOT / "docs" / "tutorials" / "your-own-photographs.md"
FIRST_SERVICE = ROOT / "docs" / "tutorials" / "first-service.md"

# Made smaller, so that a training run takes seconds: two steps of SGD on one worker.
TINY = {"schedule.max_steps": 2, "optimizer.kind": "momentum", "devices.count": 1}
IN_SHELL = " ".join(f"--set {key}={value}" for key, value in TINY.items())
IN_PYTHON = f"preset='digits-demo', **{TINY!r},"
REASONS = {
    "installs packages",
    "has a test of its own",
    "the daemon of the previous tutorial still runs",
}


@dataclass(frozen=True)
class Workspace:
    """A folder as a reader's clone, with ports of its own."""

    path: Path
    address: str
    http_address: str

    def run(self, pages: list[Path]) -> str:
        text = script(pages)
        for old, new in (
            ("--preset digits-demo", f"--preset digits-demo {IN_SHELL}"),
            ('preset="digits-demo",', IN_PYTHON),
            ("--train photos", "--train photos --set schedule.max_steps=2"),
            ("--out photos\n", "--out photos --each 8\n"),
            ("multigrain evaluate", "multigrain evaluate --task classification"),
            ("127.0.0.1:50051", self.address),
            ("127.0.0.1:9464", self.http_address),
        ):
            text = text.replace(old, new)
        environment = {
            "HOME": str(self.path),
            "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}",
            # Of a clone, where `examples` can be imported.
            "PYTHONPATH": str(ROOT),
            "MULTIGRAIN_LISTEN": self.address,
            "MULTIGRAIN_HTTP_LISTEN": self.http_address,
            "MULTIGRAIN_SERVER": self.address,
            GRAPHS: os.environ[GRAPHS],
        }
        # A daemon in the background holds the script's output open, so that it goes to files.
        with (self.path / "output").open("w") as output, (self.path / "errors").open("w") as errors:
            code = subprocess.call(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=self.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                timeout=500,
            )
        assert code == 0, (self.path / "errors").read_text()[-8000:]
        return (self.path / "output").read_text()


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed: apt-get install jq")
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    if shutil.which("grpcurl") is None:
        grpcurl = tmp_path / "bin" / "grpcurl"
        grpcurl.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.docs.grpcurl "$@"\n')
        grpcurl.chmod(0o755)
    free = ("127.0.0.1", 0)
    with socket.create_server(free) as first, socket.create_server(free) as second:
        ports = [taken.getsockname()[1] for taken in (first, second)]
    yield Workspace(tmp_path, *(f"127.0.0.1:{port}" for port in ports))
    # All that the script started has this folder as its home.
    for process in processes_below(tmp_path):
        process.kill()


def documented_paths() -> list[str]:
    """Patterns of everything in the drawing of the data directory, relative to it."""
    (drawing,) = (b for b in blocks(DATA_DIRECTORY) if b.language == "text")
    patterns: list[str] = []
    parents: list[str] = []
    for line in drawing.text.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        name = re.sub(r"<[\w-]+>", "*", line.split()[0]).rstrip("/")
        parents[depth - 1 :] = [name]
        patterns.append("/".join(parents))
    return patterns


@pytest.mark.slow
def test_commands_of_the_readme_run(workspace: Workspace) -> None:
    """With what `make demo` leaves; its model is replaced by a small one."""
    dataset = workspace.path / "demo-out" / "dataset"
    write_digits(dataset, 32)
    for folder in dataset.glob("*/*"):
        for path in sorted(folder.iterdir())[20:]:
            path.unlink()
    write_bundle(workspace.path / "demo-out" / "data" / "models", "digits", referenced=True)
    output = workspace.run([README])
    assert re.search(r'"label":\s*"label \d"', output), output
    assert list((workspace.path / "demo-out/data/models/digits/2").glob("model.onnx"))


@pytest.mark.slow
def test_commands_of_the_tutorials_run(workspace: Workspace) -> None:
    output = workspace.run([FIRST_TRAINING, FIRST_SERVICE])
    assert "1437 to train on, 360 held out" in output
    assert "1 IMAGE_" in output
    assert "multigrain.v1.EmbeddingService" in output
    assert (workspace.path / "loss.png").stat().st_size > 1000
    data = workspace.path / "multigrain-data"
    missing = [path for path in documented_paths() if not list(data.glob(path))]
    # Written by the next tutorial.
    assert missing == ["jobs/*/held_out.json"]


@pytest.mark.slow
def test_commands_of_the_tutorial_on_photographs_run(workspace: Workspace) -> None:
    """And a stranger's folder, with a damaged and a doubled file, needs nothing but them."""
    output = workspace.run([OWN_PHOTOGRAPHS])
    assert "50 photographs in photos" in output
    assert re.search(r"photos-tiny: 50 images, CPU", output)
    assert "equal files    1 pairs among 50 images" in output
    assert re.search(r"top1 [01]\.\d+", output)
    (record,) = workspace.path.glob("multigrain-data/jobs/train-*/held_out.json")
    held_out = json.loads(record.read_text())["images"]
    # A fifth of eight or ten, of each of six classes.
    assert len(held_out) == 12
    assert (workspace.path / "vector.npy").exists()
    found = re.findall(r"^(-?\d\.\d{3})  (photos/\S+)$", output, re.MULTILINE)
    assert len(found) == 5
    assert float(found[0][0]) > 0.999


@pytest.mark.parametrize(
    "page", [README, FIRST_TRAINING, FIRST_SERVICE, OWN_PHOTOGRAPHS], ids=lambda p: p.name
)
def test_only_what_cannot_be_run_is_not_run(page: Path) -> None:
    for block in blocks(page):
        assert block.language in RUNNABLE, f"{page.name}:{block.line}"
        assert not block.not_run or block.not_run in REASONS


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_targets_of_the_readme_exist(target: str) -> None:
    assert f"make {target} " in README.read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_is_one_page() -> None:
    assert README.read_text().count("\n") <= 150
