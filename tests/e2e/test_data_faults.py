"""Datasets with broken files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from multigrain.v1.common_pb2 import ERROR_KIND_DATASET
from multigrain_client import JobFailed
from tests.e2e.daemon import Daemon, wait_for_no_processes
from tests.e2e.jobs import MOMENTUM, small_training

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may break."""
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def test_a_broken_file_is_skipped_and_named(tmp_path: Path, copy: Path) -> None:
    broken = sorted((copy / "train" / "1").glob("*.png"))[3]
    broken.write_bytes(broken.read_bytes()[:60])
    # Not UTF-8, and ESC; in the same place of the order, because an epoch draws a part of it.
    name = broken.stem
    broken.rename(broken.with_name(name + os.fsdecode(b"\xe9\x1b[31m.png")))
    thumbnail = copy / "train" / "1" / "@eaDir" / "1.png" / "SYNOPHOTO_THUMB_M.jpg"
    thumbnail.parent.mkdir(parents=True)
    thumbnail.write_bytes(b"left out")
    (copy / "train" / "lost+found").mkdir(mode=0o700)
    (copy / "train" / "1" / "scan.jp2").write_bytes(b"left out")
    daemon = Daemon(tmp_path, roots=[copy]).start()
    try:
        with daemon.client() as client:
            spec = small_training(copy, epochs=1, optimizer=MOMENTUM)
            job = client.wait(client.start_training(spec))
            logs = [e.log for e in client.stream_events(job, kinds=["log"])]
        left_out = [log for log in logs if "left out" in log.message]
        assert [dict(log.fields) for log in left_out] == [{"system": "2", "unsupported": "1"}]
        shown = rf"1/{name}\xe9\x1b[31m.png"
        warnings = [log for log in logs if log.message.startswith(f"skipped {shown}: ")]
        assert len(warnings) == 1
        assert warnings[0].fields["unreadable"] == "1"
        assert warnings[0].fields["path"] == shown
    finally:
        daemon.end()


def test_a_mostly_unreadable_dataset_fails_early_with_the_reason(
    tmp_path: Path, copy: Path
) -> None:
    for path in list((copy / "train").rglob("*.png"))[::2]:
        path.write_bytes(b"")
    daemon = Daemon(tmp_path, roots=[copy]).start()
    try:
        with daemon.client() as client:
            job = client.start_training(small_training(copy, epochs=1))
            with pytest.raises(JobFailed):
                client.wait(job)
            failed = client.job(job)
            assert failed.error.kind == ERROR_KIND_DATASET
            assert "48 of 96" in failed.error.message
            assert ".png" in failed.error.message
            assert failed.attempt == 1
            assert failed.last_loss.step == 0
        wait_for_no_processes(daemon.data_dir / "jobs")
    finally:
        daemon.end()
