"""``make demo``, the README's first command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.daemon import wait_for_no_processes

pytestmark = pytest.mark.process


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_reaches_its_accuracy_and_writes_its_pictures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--out", out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out_images"] == 360
    assert summary["metrics"]["top1"] >= 0.97
    for name in ("contact_sheet.png", "loss.png"):
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 400
            # More than a blank page.
            assert len(picture.convert("L").getcolors() or range(256)) > 20
    assert list((out / "data" / "models").rglob("model.mindir"))
    assert list((out / "data" / "models").rglob("model.onnx"))
    wait_for_no_processes(out)
