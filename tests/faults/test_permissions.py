"""Nothing that the daemon and its processes write is open to other users, whatever the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from multigrain.v1 import job_pb2
from tests.e2e.daemon import Daemon, open_to_other_users
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture

pytestmark = pytest.mark.process


@pytest.mark.parametrize("umask", [0, 0o022])
def test_all_files_are_closed_to_other_users(tmp_path: Path, umask: int) -> None:
    images = tmp_path / "images"
    for number in range(4):
        path = images / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    write_bundle(tmp_path / "outside")
    archive = tmp_path / "tiny.tar"
    daemon = Daemon(tmp_path, [images], ["--devices=cpu:1"], "tests.faults.quick_daemon")
    before = os.umask(umask)
    try:
        daemon.start()
        spec = {
            "preset": "digits-demo",
            "dataset": {"train_path": str(images), "val_path": ""},
            "evaluation": {"every_epochs": 0},
        }
        with daemon.client() as client:
            client.import_model(tmp_path / "outside" / "tiny" / "1", name="imported")
            client.load_model("imported", make_default=True)
            client.embed(picture(1))
            job = client.start_training(spec, labels={"steps": "8"})
            assert client.wait(job).state == job_pb2.JOB_STATE_SUCCEEDED
            names = {path.name for path in daemon.data_dir.rglob("*")}
            exposed = open_to_other_users(daemon.data_dir)
            client.download_model("imported", archive)
        assert stat.S_IMODE(archive.stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)
        daemon.end()
    assert {"address", "daemon.lock", "state.db", "serving.json"} <= names
    assert {"events.jsonl", "spec.json", "runner.json", "manifest.json", "model.json"} <= names
    assert not exposed
