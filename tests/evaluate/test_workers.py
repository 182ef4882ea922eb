"""Evaluation by worker processes with MindSpore's collectives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.datasets import write_dataset
from tests.evaluate.worker_program import figures, search
from tests.images.files import encode, noise

pytestmark = pytest.mark.mindspore

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=3, each=5)  # 15: the shards differ in size
    for number, size in enumerate([(30, 20), (20, 30), (30, 20), (24, 9)]):
        picture = encode(noise(*size, seed=number), "PNG")
        (root / f"c{number % 3}" / f"{number:03d}.png").write_bytes(picture)
    out = tmp_path / "out"
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("msrun")),
        "--worker_num=2", "--local_worker_num=2", "--master_addr=127.0.0.1",
        f"--master_port={port}", f"--log_dir={tmp_path / 'log'}", "--join=True",
        "--cluster_time_out=60",
        str(Path(__file__).with_name("worker_program.py")), str(root), str(out),
    ]  # fmt: skip
    # msrun starts its workers with the command "python".
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    alone, found = figures(root), search(root)
    loss = alone["metrics"].pop("loss")
    for rank in (0, 1):
        result = json.loads((out / f"{rank}.json").read_text())
        assert result["world"] == 2
        assert result["figures"]["metrics"].pop("loss") == pytest.approx(loss, rel=1e-5)
        assert result["figures"] == alone
        # The batches do not depend on the workers: results are equal to the last bit.
        assert result["search"] == found
